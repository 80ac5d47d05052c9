"""Seeds that once broke a law, and what was wrong. They run first, and never leave.

A seed finds its fault again as long as the workload and the weather are drawn as they were; each fault has a test of its
own beside it, which does not depend on that.
"""

from __future__ import annotations

REGRESSIONS: dict[int, str] = {
    628: "the end that followed from an overtaken act had no message that would bring it again",
    23592: "a command that expired after it was answered, and had run again, was never undone, in our own broker of the tests",
    29836: "a connection that the server had closed still read rows, in our own database of the tests",
    1001074: "what followed from a step that nobody served was not brought back by its message",
    1236: "a refusal that came twice put off an attempt that was sent anew: an act that must not run twice ran twice",
    4894: "a reply that is in the log twice, late and awaited, brought back only what followed from the first",
}

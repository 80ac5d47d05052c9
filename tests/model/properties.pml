/* The properties, each with the law of the protocol that it states and the code that keeps it.
 *
 * Each is a named check. A violated one stops the search, and its number is in what the checker prints; ONLY=n compiles
 * all others out, which is how a mutant is shown to break the property that it should. A few are off unless a
 * configuration turns them on: they hold under its faults alone.
 */

#ifdef ONLY
#define IS_ON(n) (ONLY == n)
#else
#define IS_ON(n) 1
#endif
#define CHECK(n, condition) assert(!(IS_ON(n) && n && !(condition)))

/* Law 1. A command is published only after the transition that decided it has committed: deciding.py commits,
 * and engine.py publishes from what that returned. */
#define LAW_1_COMMITTED(condition) CHECK(101, condition)

/* Law 1. What a saga awaits is confirmed by the broker, or owed in its row, or its cause will be delivered again:
 * engine.py marks in `_settle`, orchestrator.py acknowledges after that, judgement.py repeats in `_owed_again`. An act
 * that must not be sent any more, since the saga turned, is nobody's debt. */
#define LAW_1_COVERED(condition) CHECK(102, condition)

/* Law 3. COMPENSATING is committed before the first compensation is sent: a compensation is decided only by `_backward`,
 * which runs only in that status, in the same transition or a later one. */
#define LAW_3_TURN_FIRST(condition) CHECK(301, condition)

/* Law 3. No act is decided after the turn: the assertion in directions.py's `dispatch`, and what calls it. */
#define LAW_3_DECIDED(condition) CHECK(302, condition)

/* Law 3. An engine that stood still publishes no act after the turn, or after the end: engine.py's publish window and the
 * channel's generation. One that did not stand still may, within its window, if another engine repeated the command
 * meanwhile and was faster; law 6 and the barrier are there for that. On where there is no GAP. */
#ifndef NO_OLD_ACTS
#define NO_OLD_ACTS 0
#endif
#define LAW_3_PUBLISHED(condition) CHECK(303, !NO_OLD_ACTS || (condition))

/* Law 4. A step's undoing begins only when every later step that may have acted is done being undone: `_backward`. */
#define LAW_4(condition) CHECK(401, condition)

/* Law 4, to the letter: the same for each attempt of an undoing, and after a late act. Off unless asked for. */
#ifndef STRICT_RETRIES
#define STRICT_RETRIES 0
#endif
#define LAW_4_RETRIES(condition) CHECK(402, !STRICT_RETRIES || (condition))

/* Law 4, at the participant: no step is undone while a later one's effect stands. It holds where no command runs
 * twice; on in such configurations alone. */
#ifndef NO_LATE_ACTS
#define NO_LATE_ACTS 0
#endif
#define LAW_4_EFFECTS(condition) CHECK(403, !NO_LATE_ACTS || (condition))

/* Law 5. When all is at rest, nothing of a COMPENSATED saga stands, and everything of a COMPLETED one: `needs_undoing`
 * (state.py), `highest`, the doubt of `step_replied`, `_resent`, `_overdue`. */
#define LAW_5(condition) CHECK(501, condition)

/* Law 6. At most one outcome is applied to an attempt: `awaits` (state.py), asked by `step_replied` (replies.py). */
#define LAW_6(condition) CHECK(601, condition)

/* Law 6. None is forgotten: when all is at rest, an act that ran (again) after its undoing is undone again:
 * `_stale_reply`, `LateAct`, generations (apply.py). */
#define LAW_6_LATE(condition) CHECK(602, condition)

/* Promise 1. When all is at rest, the saga is COMPLETED, COMPENSATED or parked. Every run of the model comes to rest:
 * run.py asks for it with a formula (703) in one configuration. */
#define ENDS(condition) CHECK(701, condition)

/* Promise 1 and law 1. How it ended, or that it is parked, was told: confirmed by the broker. */
#define TOLD(condition) CHECK(702, condition)

/* barrier.py: an effect at most once, none after its compensation, and taken back at most once. */
#define BARRIER_ONCE(condition) CHECK(801, !BARRIER || (condition))
#define BARRIER_NONE_AFTER(condition) CHECK(802, !BARRIER || (condition))
#define BARRIER_UNDO_ONCE(condition) CHECK(803, !BARRIER || (condition))

/* What is *not* promised without a barrier, each reachable: the search must find it. */
#ifndef EXPECT_LATE_ACT
#define EXPECT_LATE_ACT 0
#endif
#define NEVER_LATE_ACT(condition) CHECK(901, !EXPECT_LATE_ACT || (condition))

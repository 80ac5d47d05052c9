"""The mind: the services that decide what happens next. Orchestrator and reaper; they hold no user code."""

/* The state of one saga and of everything around it: its row, what is in the queues, what each process has in hand.
 *
 * Time is not a number. What the code compares with a clock is a choice here: a deadline may pass at any moment, and
 * passing while an answer is still under way (EARLY), or an orchestrator that stands still for longer than its publish
 * window (PAUSE), are faults. All faults of a run come out of one budget, so a run looks at every combination of them.
 */

#ifndef STEPS
#define STEPS 2
#endif
#ifndef ORCHESTRATORS
#define ORCHESTRATORS 2
#endif
#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef BATCH
#define BATCH 1            /* messages in one batch of an orchestrator: 1 or 2 */
#endif
#ifndef ACTS_MAX
#define ACTS_MAX 1         /* RetryPlan.attempts_max of an act */
#endif
#ifndef UNDOS_MAX
#define UNDOS_MAX 2        /* RetryPlan.attempts_max of a compensation, for each generation */
#endif
#ifndef REFUSALS_MAX
#define REFUSALS_MAX 1     /* times that a command no queue takes is sent, before the saga is parked */
#endif
#ifndef FAULTS
#define FAULTS 1           /* how many faults a run may have */
#endif
#ifndef MISHAPS
#define MISHAPS 1          /* how many runs of handlers may end otherwise than done */
#endif
#ifndef OPERATOR
#define OPERATOR 0         /* whether an operator asks, at any time, for the saga to be undone */
#endif

/* The kinds of faults that a configuration allows: 0 or 1 each. */
#ifndef CRASH
#define CRASH 0            /* a process dies between two of its moves; what it held comes again */
#endif
#ifndef CUT
#define CUT 0              /* a consumer's link breaks, and its process goes on with what it has in hand */
#endif
#ifndef DUPLICATE
#define DUPLICATE 0        /* a message in a queue doubles */
#endif
#ifndef LOSE
#define LOSE 0             /* a command in a queue vanishes: it expired, or somebody purged the queue */
#endif
#ifndef UNCONFIRMED
#define UNCONFIRMED 0      /* a publish is not confirmed: it was, or was not, delivered */
#endif
#ifndef RETURNED
#define RETURNED 0         /* no queue takes a command */
#endif
#ifndef EARLY
#define EARLY 0            /* a deadline passes while the answer is under way: a run outlives it */
#endif
#ifndef PAUSE
#define PAUSE 0            /* an engine stands still for longer than its publish window, before it looks at the clock */
#endif
#ifndef GAP
#define GAP 0              /* the same, between the look at the clock and the send */
#endif
#ifndef DATABASE
#define DATABASE 0         /* the database commits, and its answer is lost; or it takes no mark of what is owed */
#endif
#ifndef BARRIER
#define BARRIER 0          /* the participant keeps the barrier's rows */
#endif

#define K (2 * STEPS)      /* an action of a step: even is its act, odd its compensation */
#define ACT(s) (2 * (s))
#define UNDO(s) (2 * (s) + 1)
#define STEP(k) ((k) / 2)
#define IS_ACT(k) (((k) & 1) == 0)
#define TRIES_MAX(k) (IS_ACT(k) -> ACTS_MAX : UNDOS_MAX)

/* Status (state.py) */
#define NO_SAGA 0
#define RUNNING 1
#define COMPLETED 2
#define COMPENSATING 3
#define COMPENSATED 4
/* Phase */
#define IDLE 0
#define AWAITED 1
#define DELAYED 2
#define STOPPED 3
#define SETTLED 4
/* Outcome: their order is law 5's. 0 is none */
#define FAILED 1
#define UNKNOWN 2
#define DONE 3

/* One row of watership_saga: SagaState, and what is owed (owed.py). */
typedef Row {
    byte status;
    bit parked;
    byte phase[K];
    byte attempt[K];
    byte spent[K];
    bit doubtful[K];
    byte outcome[K];
    byte refusals[K];
    byte generation[STEPS];
    bit undo_again[STEPS];
    byte owed               /* NOT_OWED, IN_DOUBT, or the command that was returned */
}
#define NOT_OWED 0
#define IN_DOUBT 1
#define RETURNED_COMMAND(k, a) COMMAND_CODE(k, a)

/* What a log entry sends: one command, or one notice. */
#define NOTHING 0
#define ENDED_COMPLETED 1
#define ENDED_COMPENSATED 2
#define PARKED 3
#define COMMAND_CODE(k, a) (8 + 8 * (k) + (a))
#define CODE_ACTION(c) (((c) - 8) / 8)
#define CODE_ATTEMPT(c) ((c) & 7)

/* A message to an orchestrator, in one number. From its high end: what it says (that is its identity), the broker's
 * redelivered flag, and what the log knows of it: whether this very run is in the log (its `cause`), and what that entry
 * sends. Every copy of a message carries the latter two, which saves the model the log. */
#define MESSAGE(out, k, a, run, again) ((1 << 21) | ((out) << 19) | ((k) << 16) | ((a) << 13) | ((run) << 10) | ((again) << 9))
#define REDELIVERED 256
#define KNOWN 128
#define M_OUTCOME(m) (((m) >> 19) & 3)
#define M_ACTION(m) (((m) >> 16) & 7)
#define M_ATTEMPT(m) (((m) >> 13) & 7)
#define M_RUN(m) (((m) >> 10) & 7)
#define M_COMMAND_REDELIVERED(m) (((m) >> 9) & 1)
#define M_REDELIVERED(m) (((m) >> 8) & 1)
#define M_KNOWN(m) (((m) >> 7) & 1)
#define M_EFFECT(m) ((m) & 127)
#define M_IDENTITY(m) ((m) >> 9)
#define M_RUN_OF(m) (((m) >> 10) & 511) /* action, attempt and run */
#define START MESSAGE(0, 0, 0, 1, 0)
#define OPERATE MESSAGE(0, 1, 0, 1, 0)
#define IS_REPLY(m) (M_OUTCOME(m) != 0)

/* A command to a worker. The redelivered flag is the broker's. */
#define COMMAND(k, a, g) ((1 << 12) | ((k) << 9) | ((a) << 6) | ((g) << 3))
#define C_REDELIVERED 1
#define C_IS_REDELIVERED(c) ((c) & 1)
#define C_ACTION(c) (((c) >> 9) & 7)
#define C_ATTEMPT(c) (((c) >> 6) & 7)
#define C_GENERATION(c) (((c) >> 3) & 7)

#define ENGINES (ORCHESTRATORS + 1)
#define REAPER ORCHESTRATORS

Row row;
/* Two bags: any order of delivery. They are kept sorted, so that a bag has one representation. */
#define PLACES 8             /* of each; a run that needs more says so */
#define COMMANDS 0           /* where each begins */
#define MESSAGES PLACES
int in_queue[2 * PLACES];
#define commands(place) in_queue[place]
#define messages(place) in_queue[PLACES + (place)]

/* An engine's batch in hand. */
int judged[2 * ENGINES];     /* the deliveries that it judges */
bit unacked[ENGINES];        /* ... and still has to acknowledge: their channel is the one that brought them */
bit in_doubt[ENGINES];       /* Arrival.in_doubt: judged before, in a transaction of which nobody knows the end */
byte send_attempt[K * ENGINES]; /* what is to be sent after the commit: for each action its attempt, or 0 */
byte send_generation[STEPS * ENGINES];
byte send_notice[ENGINES];
bit overtaken[ENGINES];      /* somebody else moved the saga since this engine's commit: the guard by seq fails */
bit to_settle[ENGINES];
byte owing[ENGINES];
bit stood_still[ENGINES];    /* its batch is older than the publish window, or its channel is another */

/* A worker's command in hand. */
int serving[WORKERS];
bit serving_unacked[WORKERS];
int reply[WORKERS];

byte faults = FAULTS;
byte mishaps = MISHAPS;

/* What really happened at the participant: seen by no process, asked by the properties. */
bit in_place[STEPS];         /* its effect stands */
bit undone[STEPS];           /* a compensation took it back, at least once */
bit acted_after[STEPS];      /* it had its effect (again) after that */
byte effects[STEPS];         /* how often: 0, 1, more */
byte undoings[STEPS];
bit told;                    /* the broker confirmed the event that says how the saga stands: ended, or parked */
byte confirmed[K];           /* the newest attempt that the broker confirmed */
bit answered[K * 8];         /* an outcome was applied to this attempt */
#if BARRIER
bit act_row[STEPS];          /* rows of watership_barrier: the act's; empty if the compensation came first */
bit empty_row[STEPS];
byte undo_row[STEPS];        /* the act's row is undone: by which generation of its compensation, the newest */
#endif

#define FAULT(kind) ((kind) && faults > 0)

/* A line of a counterexample's story; the search passes over it. Actions count from 0: the act and the undoing of the
 * first step, of the second ... */
#define SAY(words) printf words
#define NAME_OF(k) (IS_ACT(k) -> 'A' : 'U'), STEP(k)

byte i_;
int m_;

/* Bags: sorted, highest first, zeros behind. */
inline put(bag, item) {
    d_step {
        m_ = item;
        assert(in_queue[bag + PLACES - 1] == 0); /* the model's queue is too short for this configuration */
        i_ = bag + PLACES - 1;
        do
        :: i_ > bag && in_queue[i_ - 1] < m_ -> in_queue[i_] = in_queue[i_ - 1]; i_--
        :: else -> break
        od;
        in_queue[i_] = m_; i_ = 0; m_ = 0
    }
}

inline take_away(bag, place) {
    d_step {
        i_ = bag + place;
        do
        :: i_ < bag + PLACES - 1 -> in_queue[i_] = in_queue[i_ + 1]; i_++
        :: else -> break
        od;
        in_queue[bag + PLACES - 1] = 0; i_ = 0
    }
}

/* Any one of those that are there. */
inline choose(bag, place) {
    place = 0;
    do
    :: place < PLACES - 1 && in_queue[bag + place + 1] != 0 -> place++
    :: break
    od
}

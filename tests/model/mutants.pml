/* The model's mutants: each takes one thing away from the protocol. run.py says which property must catch it. */

#ifndef MUTANT_PUBLISHES_BEFORE_COMMIT
#define MUTANT_PUBLISHES_BEFORE_COMMIT 0
#endif
#ifndef MUTANT_ACKNOWLEDGES_BEFORE_PUBLISH
#define MUTANT_ACKNOWLEDGES_BEFORE_PUBLISH 0
#endif
#ifndef MUTANT_OWES_NOTHING
#define MUTANT_OWES_NOTHING 0
#endif
#ifndef MUTANT_REAPER_OWES_AFTER_COMMIT
#define MUTANT_REAPER_OWES_AFTER_COMMIT 0
#endif
#ifndef MUTANT_TURNS_AFTER_SENDING
#define MUTANT_TURNS_AFTER_SENDING 0
#endif
#ifndef MUTANT_RETRIES_ACTS_AFTER_THE_TURN
#define MUTANT_RETRIES_ACTS_AFTER_THE_TURN 0
#endif
#ifndef MUTANT_PUBLISHES_OLD_BATCHES
#define MUTANT_PUBLISHES_OLD_BATCHES 0
#endif
#ifndef MUTANT_UNDOES_ALL_AT_ONCE
#define MUTANT_UNDOES_ALL_AT_ONCE 0
#endif
#ifndef MUTANT_DOES_NOT_WAIT_AT_THE_TURN
#define MUTANT_DOES_NOT_WAIT_AT_THE_TURN 0
#endif
#ifndef MUTANT_UNDOES_ONLY_DONE
#define MUTANT_UNDOES_ONLY_DONE 0
#endif
#ifndef MUTANT_TRUSTS_A_REDELIVERED_FAILURE
#define MUTANT_TRUSTS_A_REDELIVERED_FAILURE 0
#endif
#ifndef MUTANT_SENDS_AGAIN_WITHOUT_DOUBT
#define MUTANT_SENDS_AGAIN_WITHOUT_DOUBT 0
#endif
#ifndef MUTANT_APPLIES_ANY_REPLY
#define MUTANT_APPLIES_ANY_REPLY 0
#endif
#ifndef MUTANT_FORGETS_LATE_ACTS
#define MUTANT_FORGETS_LATE_ACTS 0
#endif
#ifndef MUTANT_UNDOES_ONCE
#define MUTANT_UNDOES_ONCE 0
#endif
#ifndef MUTANT_NO_DEADLINES
#define MUTANT_NO_DEADLINES 0
#endif
#ifndef MUTANT_KNOWN_MEANS_SENT
#define MUTANT_KNOWN_MEANS_SENT 0
#endif
#ifndef MUTANT_BARRIER_WITHOUT_DUPLICATES
#define MUTANT_BARRIER_WITHOUT_DUPLICATES 0
#endif
#ifndef MUTANT_BARRIER_WITHOUT_UNDO_ROWS
#define MUTANT_BARRIER_WITHOUT_UNDO_ROWS 0
#endif
#ifndef MUTANT_BARRIER_WITHOUT_EMPTY_ROWS
#define MUTANT_BARRIER_WITHOUT_EMPTY_ROWS 0
#endif

/* Mends: what the code does not do, and what would close a hole that the model found in it. */

/* A batch whose saga moved before its debt could be marked gives its messages back, instead of acknowledging them. */
#ifndef MEND_OWE
#define MEND_OWE 0
#endif
/* A delivery whose channel is gone is not judged: the broker brings it again. */
#ifndef MEND_DEAD_DELIVERIES
#define MEND_DEAD_DELIVERIES 0
#endif
/* A message that moves a parked saga, whose parking is not told yet, leaves it owed. */
#ifndef MEND_PARKED_NOTICE
#define MEND_PARKED_NOTICE 0
#endif
/* What followed from withdrawing an overtaken act is sent again too, when the message that overtook it comes again. */
#ifndef MEND_OVERTAKEN
#define MEND_OVERTAKEN 0
#endif

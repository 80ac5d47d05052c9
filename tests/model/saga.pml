/* The protocol of a saga: two orchestrators, a reaper, a worker, and a channel that loses and doubles; one saga.
 * README.md says what is modelled and what is left out; run.py has the configurations.
 */

#include "mutants.pml"
#include "properties.pml"
#include "state.pml"

#define R row

#if STEPS == 2
#define all_undone_behind(s) ((s) >= 1 || is_undone(1))
#define none_in_place_behind(s) ((s) >= 1 || !in_place[1])
#define something_active (ACTIVE(0) || ACTIVE(1) || ACTIVE(2) || ACTIVE(3))
#else
#define all_undone_behind(s) (((s) >= 1 || is_undone(1)) && ((s) >= 2 || is_undone(2)))
#define none_in_place_behind(s) (((s) >= 1 || !in_place[1]) && ((s) >= 2 || !in_place[2]))
#define something_active (ACTIVE(0) || ACTIVE(1) || ACTIVE(2) || ACTIVE(3) || ACTIVE(4) || ACTIVE(5))
#endif
#define is_undone(j) (R.phase[ACT(j)] != AWAITED && !NEEDS_UNDOING(j))

#include "machine.pml"
#include "batch.pml"
#include "engines.pml"
#include "participants.pml"

init {
    atomic {
        d_step {
            i_ = 0;
            do
            :: i_ < STEPS -> row.generation[i_] = 1; i_++
            :: else -> break
            od;
            i_ = 0
        };
        put(MESSAGES, START);
        if
        :: OPERATOR -> put(MESSAGES, OPERATE)
        :: else
        fi;
        run Orchestrator(0);
#if ORCHESTRATORS == 2
        run Orchestrator(1);
#endif
        run Reaper();
        run Worker(0);
#if WORKERS == 2
        run Worker(1);
#endif
        run Channel();
        run Watcher()
    }
}

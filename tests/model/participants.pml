/* Workers (consumer.py, replier.py, execution.py) with the participant whose data their handlers change, the channel's
 * own faults, and the watcher.
 */

byte run_;
byte outcome_;

/* A free name for a run: one that no message that is still about has. */
inline name_run(k, attempt_) {
    run_ = 1;
    do
    :: true ->
        awaited_ = 0;
        m_ = M_RUN_OF(MESSAGE(0, k, attempt_, run_, 0));
        i_ = 0;
        do
        :: i_ < PLACES -> awaited_ = awaited_ || (IS_REPLY(messages(i_)) && M_RUN_OF(messages(i_)) == m_); i_++
        :: else -> break
        od;
        i_ = 0;
        do
        :: i_ < 2 * ENGINES -> awaited_ = awaited_ || (IS_REPLY(judged[i_]) && M_RUN_OF(judged[i_]) == m_); i_++
        :: else -> break
        od;
        i_ = 0;
        do
        :: i_ < WORKERS -> awaited_ = awaited_ || (IS_REPLY(reply[i_]) && M_RUN_OF(reply[i_]) == m_); i_++
        :: else -> break
        od;
        if
        :: awaited_ -> run_++; assert(run_ < 8)
        :: else -> break
        fi
    od;
    i_ = 0; m_ = 0; awaited_ = 0
}

#if BARRIER
#define IS_EMPTY(s) empty_row[s]
#define count(times) times = (times < 2 -> times + 1 : 2)
#else
#define IS_EMPTY(s) 0
#define count(times) skip
#endif

inline act_takes_effect(s) {
    in_place[s] = 1;
    acted_after[s] = acted_after[s] || undone[s];
    NEVER_LATE_ACT(!acted_after[s]);
    BARRIER_NONE_AFTER(!undone[s] && !IS_EMPTY(s));
    count(effects[s]);
    BARRIER_ONCE(effects[s] < 2)
}

inline undo_takes_effect(s) {
    LAW_4_EFFECTS(none_in_place_behind(s));
    in_place[s] = 0; undone[s] = 1;
    count(undoings[s]);
    BARRIER_UNDO_ONCE(undoings[s] < 2)
}

/* The handler runs: done; or, by a mishap, failed without an effect, or unknown with one or without. */
inline run_handler(k) {
    if
    :: outcome_ = DONE; run_ = 1
    :: mishaps > 0 -> mishaps--; outcome_ = FAILED; run_ = 0
    :: mishaps > 0 -> mishaps--; outcome_ = UNKNOWN; run_ = 0
    :: mishaps > 0 -> mishaps--; outcome_ = UNKNOWN; run_ = 1; SAY(("(with an effect)\n"))
    fi;
    d_step {
        if
        :: run_ && IS_ACT(k) -> act_takes_effect(STEP(k))
        :: run_ && !IS_ACT(k) -> undo_takes_effect(STEP(k))
        :: else
        fi
    }
}

inline answer(me, out, again) {
    d_step {
        name_run(C_ACTION(serving[me]), C_ATTEMPT(serving[me]));
        SAY(("worker %d ran %c%d attempt %d: outcome %d\n", me, NAME_OF(C_ACTION(serving[me])), C_ATTEMPT(serving[me]), out));
        reply[me] = MESSAGE(out, C_ACTION(serving[me]), C_ATTEMPT(serving[me]), run_, again);
        run_ = 0; outcome_ = 0; m_ = 0
    }
}

#if BARRIER
#define ACT_IS_UNDONE(s) (undo_row[s] != 0 || empty_row[s])

/* barrier.py: its rows are written in the transaction of the handler's effect: with it, or not at all. */
inline run_behind_barrier(me, k, s) {
    if
    :: IS_ACT(k) && act_row[s] && ACT_IS_UNDONE(s) && !MUTANT_BARRIER_UNDOES_EACH_GENERATION ->
        answer(me, FAILED, 0) /* refused: certainly without an effect, so the redelivered flag counts for nothing */
    :: IS_ACT(k) && act_row[s] && !(ACT_IS_UNDONE(s) && !MUTANT_BARRIER_UNDOES_EACH_GENERATION) &&
        !MUTANT_BARRIER_WITHOUT_DUPLICATES -> answer(me, DONE, C_IS_REDELIVERED(serving[me]))
    :: !IS_ACT(k) && !act_row[s] && !MUTANT_BARRIER_WITHOUT_EMPTY_ROWS -> /* nothing runs, and nothing will */
        act_row[s] = 1; empty_row[s] = 1; undone[s] = 1;
        answer(me, DONE, C_IS_REDELIVERED(serving[me]))
    :: !IS_ACT(k) && act_row[s] && !MUTANT_BARRIER_WITHOUT_UNDO_ROWS &&
        (empty_row[s] || undo_row[s] >= (MUTANT_BARRIER_UNDOES_EACH_GENERATION -> C_GENERATION(serving[me]) : 1)) ->
        answer(me, DONE, C_IS_REDELIVERED(serving[me]))
    :: else ->
        run_handler(k);
        if
        :: run_ && IS_ACT(k) -> act_row[s] = 1
        :: run_ && !IS_ACT(k) -> undo_row[s] = C_GENERATION(serving[me])
        :: else
        fi;
        answer(me, outcome_, C_IS_REDELIVERED(serving[me]))
    fi
}
#endif

inline stop_serving(me) {
    d_step { serving[me] = 0; serving_unacked[me] = 0; reply[me] = 0 }
}

inline give_command_back(me) {
    if
    :: serving_unacked[me] -> put(COMMANDS, (serving[me] | C_REDELIVERED)); serving_unacked[me] = 0
    :: else
    fi
}

proctype Worker(byte me) {
    byte place;
idle:
    atomic {
        commands(0) != 0 && (me == 0 || serving[0] != 0);
        choose(COMMANDS, place);
        serving[me] = commands(place); serving_unacked[me] = 1;
        take_away(COMMANDS, place);
        place = 0
    };
running:
    if
    :: atomic {
#if BARRIER
            run_behind_barrier(me, C_ACTION(serving[me]), STEP(C_ACTION(serving[me])))
#else
            run_handler(C_ACTION(serving[me]));
            answer(me, outcome_, C_IS_REDELIVERED(serving[me]))
#endif
        }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("worker %d dies\n", me)); give_command_back(me); stop_serving(me); goto idle }
    :: atomic { FAULT(CUT) && serving_unacked[me] -> faults--; SAY(("worker %d: its link is cut\n", me)); give_command_back(me); goto running }
    fi;
replying:
    if
    :: atomic { CRASH || CUT -> put(MESSAGES, reply[me]) }
    :: atomic { !CRASH && !CUT -> put(MESSAGES, reply[me]); stop_serving(me); goto idle }
    :: atomic { FAULT(UNCONFIRMED) -> faults--; put(MESSAGES, reply[me]); goto replying } /* it is sent again */
    :: atomic { FAULT(CRASH) -> faults--; SAY(("worker %d dies\n", me)); give_command_back(me); stop_serving(me); goto idle }
    :: atomic { FAULT(CUT) && serving_unacked[me] -> faults--; SAY(("worker %d: its link is cut\n", me)); give_command_back(me); goto replying }
    fi;
#if CRASH || CUT
acknowledging:
    if
    :: atomic { stop_serving(me); goto idle }
    :: atomic { (FAULT(CRASH) || FAULT(CUT)) && serving_unacked[me] -> faults--; SAY(("worker %d dies\n", me)); give_command_back(me); stop_serving(me); goto idle }
    fi
#endif
}

proctype Channel() {
    byte place;
    do
    :: atomic { FAULT(DUPLICATE) && messages(0) != 0 -> faults--; SAY(("a message doubles\n"));
        choose(MESSAGES, place); put(MESSAGES, messages(place)); place = 0 }
    :: atomic { FAULT(DUPLICATE) && commands(0) != 0 -> faults--; SAY(("a command doubles\n"));
        choose(COMMANDS, place); put(COMMANDS, commands(place)); place = 0 }
    :: atomic { FAULT(LOSE) && commands(0) != 0 -> faults--; SAY(("a command is lost\n"));
        choose(COMMANDS, place); take_away(COMMANDS, place); place = 0 }
    od
}

/* Nothing moves any more: there is no message, no command, nobody at work, nothing due and nothing owed. */
proctype Watcher() {
    byte s;
    timeout;
    SAY(("at rest: status %d parked %d told %d; in place %d %d, acted after its undoing %d %d\n", row.status, row.parked, told, in_place[0], in_place[1], acted_after[0], acted_after[1]));
    /* Nobody is stuck in the middle of something: else the model itself would be wrong, or the protocol. */
    assert(!messages(0) && !commands(0) && row.owed == NOT_OWED && !serving[0] && !serving[WORKERS - 1]);
    assert(!judged[0] && !judged[2 * (ORCHESTRATORS - 1)] && !sends(REAPER) && !to_settle[REAPER]);
    ENDS(row.status == COMPLETED || row.status == COMPENSATED || row.parked);
    TOLD(told);
    do
    :: s < STEPS ->
        LAW_5(row.parked || acted_after[s] || in_place[s] == (row.status == COMPLETED));
        LAW_6_LATE(row.parked || !acted_after[s] || in_place[s] == (row.status == COMPLETED));
        s++
    :: else -> break
    od
}

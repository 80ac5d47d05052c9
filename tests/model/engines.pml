/* The engines as processes: orchestrators (orchestrator.py) and the reaper (reaper.py).
 *
 * Lock, decide and commit are one move: the row's lock keeps every other engine out between the first and the last
 * (statements.py), so a crash in between is a crash before. Everything after the commit is a move of its own.
 */

inline acknowledge(me) {
    SAY(("engine %d acknowledges\n", me));
    let_go(me);
    d_step { check_covered() }
}

proctype Orchestrator(byte me) {
    byte place;
idle:
    atomic {
        /* Idle orchestrators are alike: the first one that is idle takes the next message. */
        messages(0) != 0 && (me == 0 || judged[0] != 0);
        choose(MESSAGES, place);
        judged[2 * me] = messages(place); unacked[me] = 1;
        take_away(MESSAGES, place);
        place = 0;
        if
        :: BATCH > 1 && messages(0) != 0 ->
            choose(MESSAGES, place);
            judged[2 * me + 1] = messages(place);
            take_away(MESSAGES, place);
            place = 0
        :: true
        fi
    };
judging:
    if
    :: atomic { d_step {
            begin_judgement();
            arrival(judged[2 * me], (M_REDELIVERED(judged[2 * me]) || in_doubt[me]) && !MUTANT_KNOWN_MEANS_SENT);
            if
            :: judged[2 * me + 1] != 0 -> /* of two copies in one batch, the second finds no entry in the history */
                arrival(judged[2 * me + 1], (M_REDELIVERED(judged[2 * me + 1]) || in_doubt[me]) && !MUTANT_KNOWN_MEANS_SENT &&
                    M_IDENTITY(judged[2 * me]) != M_IDENTITY(judged[2 * me + 1]))
            :: else
            fi;
            withdraw_overtaken();
            if
            :: changed && !MUTANT_FORGETS_WHAT_WAS_OVERTAKEN -> remember(judged[2 * me + (judged[2 * me + 1] != 0 -> 1 : 0)], effect)
            :: else
            fi;
            commit(me, 1);
            if
            :: MUTANT_TURNS_AFTER_SENDING && status_before == RUNNING && row.status == COMPENSATING -> row.status = RUNNING
            :: else
            fi;
            forget_scratch();
            if
            :: MUTANT_ACKNOWLEDGES_BEFORE_PUBLISH -> unacked[me] = 0
            :: else
            fi;
            check_covered() }
        }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("engine %d dies\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { FAULT(CUT) && unacked[me] -> faults--; SAY(("engine %d: its link is cut; what it holds comes again\n", me)); give_back(me); goto judging }
    :: atomic { MUTANT_PUBLISHES_BEFORE_COMMIT && M_OUTCOME(judged[2 * me]) == DONE && M_ACTION(judged[2 * me]) == ACT(0) ->
        send_attempt[me * K + ACT(1)] = 1; send_all(me); d_step { forget_sends(me) }; goto judging }
    fi;
committed:
    if
    :: atomic { FAULT(DATABASE) && !in_doubt[me] -> faults--; SAY(("engine %d: committed, and never told\n", me)); d_step { in_doubt[me] = 1; forget_sends(me) }; goto judging }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("engine %d dies\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { FAULT(CUT) && unacked[me] -> faults--; SAY(("engine %d: its link is cut; what it holds comes again\n", me)); give_back(me); goto committed }
    :: atomic { FAULT(PAUSE) && !stood_still[me] -> faults--; stood_still[me] = 1; SAY(("engine %d stands still\n", me)); goto committed }
    :: atomic { stood_still[me] && !MUTANT_PUBLISHES_OLD_BATCHES -> SAY(("engine %d drops an old batch\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { (!stood_still[me] || MUTANT_PUBLISHES_OLD_BATCHES) && !GAP -> send_all(me); goto published }
    :: GAP && (!stood_still[me] || MUTANT_PUBLISHES_OLD_BATCHES) /* it has looked at the clock, and not yet sent */
    fi;
#if GAP
checked:
    if
    :: atomic { FAULT(GAP) && !stood_still[me] -> faults--; stood_still[me] = 1; SAY(("engine %d stands still\n", me)); goto checked }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("engine %d dies\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { send_all(me) }
    fi;
#endif
published:
    if
    :: atomic { !MUTANT_ACKNOWLEDGES_WHEN_OVERTAKEN && owing[me] != NOT_OWED && overtaken[me] ->
        SAY(("engine %d gives its messages back: the saga has moved\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { CRASH && !(!MUTANT_ACKNOWLEDGES_WHEN_OVERTAKEN && owing[me] != NOT_OWED && overtaken[me]) -> mark(me) }
    :: atomic { !CRASH && !(!MUTANT_ACKNOWLEDGES_WHEN_OVERTAKEN && owing[me] != NOT_OWED && overtaken[me]) -> mark(me); acknowledge(me); goto idle }
    :: atomic { FAULT(DATABASE) && (owing[me] || to_settle[me]) -> faults--;
        SAY(("engine %d: what it owes cannot be marked; its messages come again\n", me)); give_back(me); let_go(me); goto idle }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("engine %d dies\n", me)); give_back(me); let_go(me); goto idle }
    fi;
#if CRASH
marked:
    if
    :: atomic { acknowledge(me); goto idle }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("engine %d dies\n", me)); give_back(me); let_go(me); goto idle }
    fi
#endif
}

/* The reaper: the same engine, and a look in the place of messages. */
proctype Reaper() {
    byte due;
idle:
    atomic {
        if
        :: row.owed != NOT_OWED && !engines_at_work -> due = K /* a debt, long enough after anybody did anything about it */
        :: row.owed != NOT_OWED && engines_at_work && FAULT(EARLY) -> due = K; faults--
        :: may_be_due(0) -> due = 0
        :: may_be_due(1) -> due = 1
        :: may_be_due(2) -> due = 2
        :: may_be_due(3) -> due = 3
#if STEPS == 3
        :: may_be_due(4) -> due = 4
        :: may_be_due(5) -> due = 5
#endif
        fi;
        if
        :: due != K && row.phase[due] == AWAITED && in_flight(due) -> faults--
        :: else
        fi;
        d_step {
            SAY(("reaper looks, due: %d (%d is none)\n", due, K));
            begin_judgement();
            look(due);
            withdraw_overtaken();
            commit(REAPER, 0);
            forget_scratch();
            due = 0;
            check_covered()
        }
    };
committed:
    if
    :: atomic { FAULT(DATABASE) -> faults--; SAY(("reaper: the database does not answer\n")); let_go(REAPER); goto idle }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("reaper dies\n")); let_go(REAPER); goto idle }
    :: atomic { FAULT(PAUSE) && !stood_still[REAPER] -> faults--; stood_still[REAPER] = 1; SAY(("reaper stands still\n")); goto committed }
    :: atomic { stood_still[REAPER] && !MUTANT_PUBLISHES_OLD_BATCHES -> SAY(("reaper drops an old batch\n")); let_go(REAPER); goto idle }
    :: atomic { (!stood_still[REAPER] || MUTANT_PUBLISHES_OLD_BATCHES) && !GAP -> send_all(REAPER); goto published }
    :: GAP && (!stood_still[REAPER] || MUTANT_PUBLISHES_OLD_BATCHES)
    fi;
#if GAP
checked:
    if
    :: atomic { FAULT(GAP) && !stood_still[REAPER] -> faults--; stood_still[REAPER] = 1; SAY(("reaper stands still\n")); goto checked }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("reaper dies\n")); let_go(REAPER); goto idle }
    :: atomic { send_all(REAPER) }
    fi;
#endif
published:
    if
    :: atomic { mark(REAPER); let_go(REAPER); d_step { check_covered() }; goto idle }
    :: atomic { FAULT(DATABASE) -> faults--; SAY(("reaper: the database does not answer\n")); let_go(REAPER); goto idle }
    :: atomic { FAULT(CRASH) -> faults--; SAY(("reaper dies\n")); let_go(REAPER); goto idle }
    fi
}

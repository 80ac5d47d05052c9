/* The judgement: react.py, replies.py, directions.py, apply.py, and judgement.py's fold of a batch.
 *
 * Each inline has the name of the function that it follows. `R` is the row that is judged: the locked one. What react.py
 * ends with in `go_on` is asked for here by `look_afresh`, and done once, at the end of the event.
 */

/* Scratch of one judgement: set at its beginning, forgotten at its end. */
byte sent[K];         /* Judgement.commands: for each action the attempt that is to be sent */
byte fresh[K];        /* decided_now */
byte before[K];       /* awaited_before: the attempt that was awaited, or 0 */
byte owed_before;
byte parked_before;
byte status_before;
byte notice;          /* notices: the newest one, which is the one that may still be true */
byte effect;          /* what the log entry that is being written sends */
byte changed;          /* this event wrote an entry */
byte moved;            /* this batch wrote one */
byte unbacked;         /* it wrote one for a message that nobody awaited: a copy may be acknowledged already */
byte look_afresh;
byte awaited_;
byte final_;
byte k_;
byte s_;
byte a_;
byte o_;
byte j_;

#define MAY_HAVE_RUN(k) (R.outcome[k] >= UNKNOWN)
#define ACTIVE(k) (R.phase[k] == AWAITED || R.phase[k] == DELAYED)
#define NEEDS_UNDOING(s) (MAY_HAVE_RUN(ACT(s)) && R.phase[UNDO(s)] != SETTLED)
#define AWAITS(k, a) (R.phase[k] == AWAITED && R.attempt[k] == (a))

inline raise(k, outcome_) {
    if
    :: R.outcome[k] < outcome_ -> R.outcome[k] = outcome_
    :: else
    fi
}

inline dispatch(k, attempt_) {
    a_ = attempt_;
    LAW_3_DECIDED(!IS_ACT(k) || R.status == RUNNING);
    LAW_4_RETRIES(IS_ACT(k) || all_undone_behind(STEP(k)));
    assert(a_ < 8); /* the model's attempts have three bits */
    if
    :: a_ != R.attempt[k] -> R.refusals[k] = 0; R.doubtful[k] = 0
    :: else
    fi;
    R.phase[k] = AWAITED; R.attempt[k] = a_;
    sent[k] = a_; fresh[k] = a_; effect = COMMAND_CODE(k, a_); changed = 1
}

inline delay(k, attempt_) {
    a_ = attempt_;
    assert(a_ < 8);
    R.phase[k] = DELAYED; R.attempt[k] = a_;
    R.refusals[k] = 0; R.doubtful[k] = 0; changed = 1
}

inline resend(k, is_doubtful) {
    if
    :: is_doubtful -> R.doubtful[k] = 1
    :: else -> R.refusals[k]++
    fi;
    sent[k] = R.attempt[k]; effect = COMMAND_CODE(k, R.attempt[k]); changed = 1
}

inline park() {
    R.parked = 1; notice = PARKED; effect = PARKED; changed = 1
}

inline overdue(k) {
    raise(k, UNKNOWN);
    R.phase[k] = SETTLED; changed = 1; look_afresh = 1
}

inline turn_around() {
    R.status = COMPENSATING; changed = 1; look_afresh = 1
}

/* apply.py: attempts are counted on, so that a reply to an older generation is never taken for this one's. */
inline begin_generation(s) {
    R.generation[s]++;
    assert(R.generation[s] < 8);
    R.phase[UNDO(s)] = IDLE; R.spent[UNDO(s)] = R.attempt[UNDO(s)];
    R.outcome[UNDO(s)] = 0; R.refusals[UNDO(s)] = 0; R.doubtful[UNDO(s)] = 0;
    R.undo_again[s] = 0
}

/* --- directions.py ------------------------------------------------------------------------------------------------ */

inline forward() {
    s_ = 0;
    do
    :: s_ == STEPS -> R.status = COMPLETED; notice = ENDED_COMPLETED; effect = ENDED_COMPLETED; changed = 1; break
    :: s_ < STEPS && R.phase[ACT(s_)] == IDLE -> dispatch(ACT(s_), 1); break
    :: s_ < STEPS && R.phase[ACT(s_)] == SETTLED -> s_++
    :: s_ < STEPS && R.phase[ACT(s_)] != IDLE && R.phase[ACT(s_)] != SETTLED -> break
    od
}

/* Law 4: from the last step to the first. `s_` counts from above, by one more than the step. */
inline backward() {
    s_ = STEPS;
    do
    :: s_ == 0 ->
        R.status = COMPENSATED; notice = ENDED_COMPENSATED; effect = ENDED_COMPENSATED; changed = 1; break
    :: else ->
        s_--;
        if
        :: R.phase[ACT(s_)] == DELAYED ->
            if
            :: R.doubtful[ACT(s_)] -> raise(ACT(s_), UNKNOWN)
            :: else
            fi;
            R.phase[ACT(s_)] = SETTLED; changed = 1
        :: else
        fi;
        if
        :: R.phase[ACT(s_)] == AWAITED && !MUTANT_DOES_NOT_WAIT_AT_THE_TURN -> break
        :: else
        fi;
        if
        :: NEEDS_UNDOING(s_) && !(MUTANT_UNDOES_ONLY_DONE && R.outcome[ACT(s_)] != DONE) ->
            if
            :: R.phase[UNDO(s_)] == IDLE ->
                LAW_4(all_undone_behind(s_));
                dispatch(UNDO(s_), R.attempt[UNDO(s_)] + 1)
            :: else
            fi;
            if
            :: MUTANT_UNDOES_ALL_AT_ONCE
            :: !MUTANT_UNDOES_ALL_AT_ONCE -> break
            fi
        :: else
        fi
    od
}

inline go_on() {
    if
    :: look_afresh && !R.parked && R.status == RUNNING -> forward()
    :: look_afresh && !R.parked && R.status == COMPENSATING -> backward()
    :: else
    fi;
    look_afresh = 0; s_ = 0
}

/* --- react.py, replies.py ----------------------------------------------------------------------------------------------------- */

inline saga_started() {
    R.status = RUNNING; changed = 1; look_afresh = 1
}

/* A saga that is parked while it goes forward is let go on by this verb; nothing else unparks in the model. */
inline compensate_requested() {
    if
    :: R.status == RUNNING ->
        R.parked = 0;
        k_ = 0;
        do
        :: k_ < K -> R.refusals[k_] = 0; k_++
        :: else -> break
        od;
        turn_around()
    :: else
    fi
}

inline try_again(k) {
    if
    :: IS_ACT(k) && !R.parked -> dispatch(k, R.attempt[k] + 1) /* an act's delay is 0 by default, an undoing's is not */
    :: else -> delay(k, R.attempt[k] + 1)
    fi
}

inline step_replied(m) {
    k_ = M_ACTION(m); s_ = STEP(k_); o_ = M_OUTCOME(m);
    if
    :: o_ == FAILED && !MUTANT_TRUSTS_A_REDELIVERED_FAILURE && (M_COMMAND_REDELIVERED(m) || R.doubtful[k_]) -> o_ = UNKNOWN
    :: else
    fi;
    LAW_6(!answered[k_ * 8 + M_ATTEMPT(m)]);
    answered[k_ * 8 + M_ATTEMPT(m)] = 1;
    final_ = o_ == DONE ||
        !(M_ATTEMPT(m) - R.spent[k_] < TRIES_MAX(k_) && (!IS_ACT(k_) || R.status == RUNNING || MUTANT_RETRIES_ACTS_AFTER_THE_TURN));
    raise(k_, o_);
    if
    :: o_ == DONE || (final_ && IS_ACT(k_)) -> R.phase[k_] = SETTLED
    :: final_ && o_ != DONE && !IS_ACT(k_) -> R.phase[k_] = STOPPED
    :: !final_
    fi;
    if
    :: !IS_ACT(k_) && R.phase[k_] == SETTLED && R.undo_again[s_] -> begin_generation(s_)
    :: else
    fi;
    changed = 1;
    if
    :: !final_ -> try_again(k_)
    :: final_ && o_ == DONE -> look_afresh = 1
    :: final_ && o_ != DONE && !IS_ACT(k_) -> park()
    :: final_ && o_ != DONE && IS_ACT(k_) ->
        if
        :: R.status == RUNNING -> turn_around()
        :: else -> look_afresh = 1
        fi
    fi
}

inline undo_late(s) {
    if
    :: ACTIVE(ACT(s)) || !NEEDS_UNDOING(s) || R.parked
    :: else ->
        if
        :: R.status == COMPENSATED -> turn_around()
        :: else -> look_afresh = 1
        fi
    fi
}

inline stale_reply(m) {
    k_ = M_ACTION(m); s_ = STEP(k_); o_ = M_OUTCOME(m);
    if
    :: o_ == FAILED && M_COMMAND_REDELIVERED(m) -> o_ = UNKNOWN
    :: else
    fi;
    if
    :: !IS_ACT(k_) || o_ == FAILED || M_ATTEMPT(m) > R.attempt[k_] || MUTANT_FORGETS_LATE_ACTS
    :: else ->
        if
        :: R.outcome[k_] == DONE && R.phase[UNDO(s_)] == IDLE /* it ran twice; the saga wants it done, and it is */
        :: else ->
            raise(k_, o_);
            if
            :: R.phase[UNDO(s_)] == SETTLED -> begin_generation(s_)
            :: R.phase[UNDO(s_)] != SETTLED && R.phase[UNDO(s_)] != IDLE -> R.undo_again[s_] = !MUTANT_UNDOES_ONCE
            :: else
            fi;
            changed = 1;
            undo_late(s_)
        fi
    fi
}

inline withdrawn(k) {
    if
    :: R.doubtful[k] -> overdue(k)
    :: else ->
        R.attempt[k]--;
        R.phase[k] = (R.attempt[k] > 0 -> SETTLED : IDLE);
        changed = 1; look_afresh = 1
    fi
}

inline dispatch_repeated(k, a, unsent) {
    if
    :: !AWAITS(k, a)
    :: AWAITS(k, a) && IS_ACT(k) && R.status == COMPENSATING ->
        if
        :: unsent -> withdrawn(k)
        :: else
        fi
    :: AWAITS(k, a) && !(IS_ACT(k) && R.status == COMPENSATING) ->
        if
        :: unsent && R.refusals[k] + 1 >= REFUSALS_MAX -> R.phase[k] = DELAYED; R.refusals[k]++; park()
        :: else -> resend(k, !(unsent))
        fi
    fi
}

/* `due`: the action whose deadline passed; none, if it is K. Two at once are two looks. */
inline time_passed(due) {
    k_ = 0;
    do
    :: k_ == K || R.parked -> break
    :: k_ < K && !R.parked ->
        if
        :: k_ == due && ACTIVE(k_) ->
            if
            :: IS_ACT(k_) && R.status == COMPENSATING ->
                if
                :: R.phase[k_] == AWAITED -> overdue(k_)
                :: else -> look_afresh = 1
                fi
            :: !(IS_ACT(k_) && R.status == COMPENSATING) && R.phase[k_] == DELAYED -> dispatch(k_, R.attempt[k_])
            :: else -> resend(k_, !MUTANT_SENDS_AGAIN_WITHOUT_DOUBT)
            fi
        :: else
        fi;
        k_++
    od
}

/* --- judgement.py ------------------------------------------------------------------------------------------------- */

inline begin_judgement() {
    owed_before = R.owed; parked_before = R.parked; status_before = R.status;
    notice = NOTHING; effect = NOTHING; changed = 0; moved = 0; unbacked = 0; look_afresh = 0; s_ = 0; o_ = 0;
    k_ = 0;
    do
    :: k_ < K ->
        sent[k_] = 0; fresh[k_] = 0;
        before[k_] = (owed_before != NOT_OWED && R.phase[k_] == AWAITED -> R.attempt[k_] : 0);
        k_++
    :: else -> break
    od
}

/* The end of an event: its entry is written. What the saga then awaits is not covered by what it awaited before. */
inline end_event() {
    go_on();
    moved = moved || changed
}

/* What followed from a message that the log knows may never have been sent (law 6). Its notices are sent again too. */
inline owed_again(m) {
    a_ = M_EFFECT(m);
    if
    :: a_ >= COMMAND_CODE(0, 0) ->
        k_ = CODE_ACTION(a_); a_ = CODE_ATTEMPT(a_);
        dispatch_repeated(k_, a_, 0)
    :: a_ < COMMAND_CODE(0, 0) && a_ != NOTHING -> notice = a_
    :: else
    fi
}

/* One message. Its entry, if it made one, is known to every copy of it from now on. */
inline arrival(m, again) {
    changed = 0; effect = NOTHING;
    SAY(("engine %d judges %c%d attempt %d run %d outcome %d, command redelivered %d, message redelivered %d, known %d\n", me,
        NAME_OF(M_ACTION(m)), M_ATTEMPT(m), M_RUN(m), M_OUTCOME(m), M_COMMAND_REDELIVERED(m), M_REDELIVERED(m), M_KNOWN(m)));
    awaited_ = IS_REPLY(m) && AWAITS(M_ACTION(m), M_ATTEMPT(m));
    if
    :: MUTANT_APPLIES_ANY_REPLY && IS_REPLY(m) && M_ATTEMPT(m) <= R.attempt[M_ACTION(m)] && R.phase[M_ACTION(m)] == AWAITED -> awaited_ = 1
    :: else
    fi;
    if
    :: !awaited_ && M_KNOWN(m) ->
        if
        :: again -> owed_again(m); end_event()
        :: else
        fi
    :: awaited_ || !M_KNOWN(m) ->
        if
        :: awaited_ -> step_replied(m)
        :: !awaited_ && IS_REPLY(m) -> stale_reply(m)
        :: M_IDENTITY(m) == M_IDENTITY(START) -> saga_started()
        :: M_IDENTITY(m) == M_IDENTITY(OPERATE) -> compensate_requested()
        fi;
        end_event();
        unbacked = unbacked || (changed && !awaited_ && M_IDENTITY(m) != M_IDENTITY(START) && !MUTANT_BACKED_BY_A_COPY);
        if
        :: changed -> remember(m, effect)
        :: else
        fi
    fi
}

/* The reaper's look. */
inline look(due) {
    if
    :: owed_before != NOT_OWED ->
        j_ = 0;
        do
        :: j_ < K ->
            if
            :: before[j_] -> dispatch_repeated(j_, before[j_], (owed_before == RETURNED_COMMAND(j_, before[j_])))
            :: else
            fi;
            go_on();
            j_++
        :: else -> break
        od;
        if
        :: parked_before -> notice = PARKED
        :: !parked_before && status_before == COMPLETED -> notice = ENDED_COMPLETED
        :: !parked_before && status_before == COMPENSATED -> notice = ENDED_COMPENSATED
        :: else
        fi
    :: else
    fi;
    time_passed(due);
    end_event()
}

/* An act that this batch decided and then turned away from, or that no queue took, was never sent. */
inline withdraw_overtaken() {
    changed = 0; effect = NOTHING;
    j_ = 0;
    do
    :: j_ < K ->
        if
        :: R.status == COMPENSATING && IS_ACT(j_) && R.phase[j_] == AWAITED &&
            (fresh[j_] == R.attempt[j_] ||
                (before[j_] == R.attempt[j_] && owed_before == RETURNED_COMMAND(j_, before[j_]))) ->
            withdrawn(j_); go_on()
        :: else
        fi;
        j_++
    :: else -> break
    od;
    end_event()
}

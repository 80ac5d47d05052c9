/* What every engine does with a batch (deciding.py, engine.py): write the row, send, mark, give back. */

/* Every copy of a message knows that its run is in the log, and what the entry sends. */
inline remember(m, code) {
    i_ = 0;
    do
    :: i_ < PLACES ->
        if
        :: messages(i_) != 0 && M_IDENTITY(messages(i_)) == M_IDENTITY(m) -> messages(i_) = (messages(i_) & ~127) | KNOWN | code
        :: else
        fi;
        i_++
    :: else -> break
    od;
    i_ = 0;
    do
    :: i_ < WORKERS ->
        if
        :: reply[i_] != 0 && M_IDENTITY(reply[i_]) == M_IDENTITY(m) -> reply[i_] = (reply[i_] & ~127) | KNOWN | code
        :: else
        fi;
        i_++
    :: else -> break
    od;
    /* `m` is one of these: the last, since the loop compares with it */
    m_ = m;
    i_ = 0;
    do
    :: i_ < 2 * ENGINES ->
        if
        :: judged[i_] != 0 && M_IDENTITY(judged[i_]) == M_IDENTITY(m_) -> judged[i_] = (judged[i_] & ~127) | KNOWN | code
        :: else
        fi;
        i_++
    :: else -> break
    od;
    i_ = 0; m_ = 0
}

/* --- engines ------------------------------------------------------------------------------------------------------ */

/* What it decided and has not sent, or not marked. */
#define in_hand(e) (send_notice[e] != 0 || to_settle[e] || sends(e))
#define at_work(e) (!stood_still[e] && (in_hand(e) || judged[2 * (e)]))
#if ORCHESTRATORS == 2
#define engines_at_work (messages(0) || at_work(0) || at_work(1))
#else
#define engines_at_work (messages(0) || at_work(0))
#endif
#if STEPS == 2
#define sends(e) (send_attempt[(e)*K] || send_attempt[(e)*K + 1] || send_attempt[(e)*K + 2] || send_attempt[(e)*K + 3])
#else
#define sends(e) (send_attempt[(e)*K] || send_attempt[(e)*K + 1] || send_attempt[(e)*K + 2] || send_attempt[(e)*K + 3] || send_attempt[(e)*K + 4] || send_attempt[(e)*K + 5])
#endif

#define CARRIES(m, code) ((m) != 0 && M_KNOWN(m) && M_EFFECT(m) == (code))

/* Law 1: what is awaited and not confirmed is owed, or a message that brings it back is not acknowledged. */
inline check_covered() {
    k_ = 0;
    do
    :: k_ < K ->
        if
        :: row.phase[k_] == AWAITED && confirmed[k_] < row.attempt[k_] && row.owed == NOT_OWED &&
            !(IS_ACT(k_) && row.status != RUNNING) && !row.parked ->
            awaited_ = 0;
            a_ = COMMAND_CODE(k_, row.attempt[k_]);
            i_ = 0;
            do
            :: i_ < PLACES -> awaited_ = awaited_ || (CARRIES(messages(i_), a_) && M_REDELIVERED(messages(i_))); i_++
            :: else -> break
            od;
            i_ = 0;
            do
            :: i_ < 2 * ENGINES -> awaited_ = awaited_ || (unacked[i_ / 2] && CARRIES(judged[i_], a_)); i_++
            :: else -> break
            od;
            LAW_1_COVERED(awaited_)
        :: else
        fi;
        k_++
    :: else -> break
    od;
    i_ = 0; k_ = 0; a_ = 0; awaited_ = 0
}

/* Whether an answer to what is awaited may still come: it, or its command, is somewhere. What an engine has in hand
 * that stands still counts for nothing: whoever waits for it waits for longer than any deadline. */
#define asks(c, k) (c && C_ACTION(c) == k && C_ATTEMPT(c) == row.attempt[k])
#define answers(m, k) (IS_REPLY(m) && M_ACTION(m) == k && M_ATTEMPT(m) == row.attempt[k])
#define brings_back(m, k) (M_KNOWN(m) && M_EFFECT(m) == COMMAND_CODE(k, row.attempt[k]))
#define about(m, k) (answers(m, k) || brings_back(m, k))
#define holds(e, k) (about(judged[2 * (e)], k) || about(judged[2 * (e) + 1], k) || send_attempt[(e) * K + k] == row.attempt[k])
#define at_engine(e, k) (!stood_still[e] && holds(e, k))
#define in_queues_at(i, k) (asks(commands(i), k) || about(messages(i), k))
#define in_four_from(i, k) (in_queues_at(i, k) || in_queues_at(i + 1, k) || in_queues_at(i + 2, k) || in_queues_at(i + 3, k))
#define in_queues(k) (in_four_from(0, k) || in_four_from(4, k))
#if ORCHESTRATORS == 2
#define at_engines(k) (at_engine(0, k) || at_engine(1, k))
#else
#define at_engines(k) at_engine(0, k)
#endif
#if WORKERS == 2
#define at_workers(k) (asks(serving[0], k) || asks(serving[1], k))
#else
#define at_workers(k) asks(serving[0], k)
#endif
#define in_flight(k) (in_queues(k) || at_engines(k) || at_workers(k))
#define may_be_due(k) (ACTIVE(k) && !row.parked && !MUTANT_NO_DEADLINES && (R.phase[k] == DELAYED || !in_flight(k) || FAULT(EARLY)))

/* Judgement.commands_to_send and owed_reason; then the row is written. */
inline commit(me, by_message) {
    final_ = 0; /* something is sent */
    awaited_ = 0; /* something that was owed is still awaited, and not sent by this batch: `forgotten` */
    k_ = 0;
    do
    :: k_ < K ->
        send_attempt[me * K + k_] = 0;
        if
        :: sent[k_] != 0 && AWAITS(k_, sent[k_]) && !(IS_ACT(k_) && R.status == COMPENSATING) ->
            send_attempt[me * K + k_] = sent[k_]; final_ = 1
        :: else ->
            awaited_ = awaited_ || (before[k_] != 0 && AWAITS(k_, before[k_]))
        fi;
        k_++
    :: else -> break
    od;
    s_ = 0;
    do
    :: s_ < STEPS ->
        send_generation[me * STEPS + s_] = (send_attempt[me * K + UNDO(s_)] != 0 -> R.generation[s_] : 0); s_++
    :: else -> break
    od;
    send_notice[me] = NOTHING;
    if
    :: notice == PARKED && R.parked -> send_notice[me] = notice
    :: notice == ENDED_COMPLETED && R.status == COMPLETED -> send_notice[me] = notice
    :: notice == ENDED_COMPENSATED && R.status == COMPENSATED -> send_notice[me] = notice
    :: else
    fi;
    if
    :: moved && !(by_message && !unbacked) && (final_ || notice != NOTHING) && !MUTANT_REAPER_OWES_AFTER_COMMIT -> R.owed = IN_DOUBT
    :: moved && ((by_message && !unbacked) || !(final_ || notice != NOTHING)) && owed_before != NOT_OWED && !awaited_ &&
        !(!MUTANT_FORGETS_TO_TELL && notice == NOTHING && (R.parked || R.status == COMPLETED || R.status == COMPENSATED)) -> R.owed = NOT_OWED
    :: else
    fi;
    to_settle[me] = (by_message -> unbacked && moved && owed_before == NOT_OWED : moved || owed_before != NOT_OWED);
    owing[me] = NOT_OWED;
    overtaken[me] = 0;
    if
    :: moved ->
        i_ = 0;
        do
        :: i_ < ENGINES ->
            /* Only of who has something to mark: else the bit would tell runs apart that are alike. */
            overtaken[i_] = overtaken[i_] || (i_ != me && in_hand(i_)); i_++
        :: else -> break
        od;
        i_ = 0
    :: else
    fi;
    SAY(("    committed: status %d parked %d owed %d moved %d; A0 %d/%d U0 %d/%d A1 %d/%d U1 %d/%d; sends %d %d %d %d notice %d\n",
        R.status, R.parked, R.owed, moved, R.phase[0], R.attempt[0], R.phase[1], R.attempt[1], R.phase[2], R.attempt[2],
        R.phase[3], R.attempt[3], send_attempt[me * K], send_attempt[me * K + 1], send_attempt[me * K + 2],
        send_attempt[me * K + 3], send_notice[me]));
    if
    :: status_before != R.status || parked_before != R.parked -> told = 0
    :: else
    fi
}

inline forget_scratch() {
    k_ = 0;
    do
    :: k_ < K -> sent[k_] = 0; fresh[k_] = 0; before[k_] = 0; k_++
    :: else -> break
    od;
    owed_before = 0; parked_before = 0; status_before = 0; notice = 0; effect = 0; changed = 0; moved = 0; unbacked = 0;
    look_afresh = 0; awaited_ = 0; final_ = 0; k_ = 0; s_ = 0; a_ = 0; o_ = 0; j_ = 0; i_ = 0; m_ = 0
}

inline forget_sends(me) {
    k_ = 0;
    do
    :: k_ < K -> send_attempt[me * K + k_] = 0; k_++
    :: else -> break
    od;
    k_ = 0;
    do
    :: k_ < STEPS -> send_generation[me * STEPS + k_] = 0; k_++
    :: else -> break
    od;
    k_ = 0;
    send_notice[me] = 0; to_settle[me] = 0; owing[me] = 0; overtaken[me] = 0; stood_still[me] = 0
}

/* What this engine has in hand and did not acknowledge is delivered again, as redelivered. */
inline give_back(me) {
    if
    :: unacked[me] ->
        if
        :: judged[2 * me] != 0 -> put(MESSAGES, (judged[2 * me] | REDELIVERED))
        :: else
        fi;
        if
        :: judged[2 * me + 1] != 0 -> put(MESSAGES, (judged[2 * me + 1] | REDELIVERED))
        :: else
        fi;
        unacked[me] = 0
    :: else
    fi
}

inline let_go(me) {
    d_step { judged[2 * me] = 0; judged[2 * me + 1] = 0; unacked[me] = 0; in_doubt[me] = 0; forget_sends(me) }
}

/* One message out: its fate is the broker's and the link's. `delivered` is what happens where it arrives. */
inline send_command(me, k) {
    if
    :: send_attempt[me * K + k] != 0 ->
        LAW_1_COMMITTED(row.attempt[k] >= send_attempt[me * K + k]);
        LAW_3_TURN_FIRST(IS_ACT(k) || row.status == COMPENSATING || row.status == COMPENSATED);
        LAW_3_PUBLISHED(!IS_ACT(k) || row.status == RUNNING || !stood_still[me]);
        if
        :: SAY(("engine %d sends %c%d attempt %d: confirmed\n", me, NAME_OF(k), send_attempt[me * K + k]));
            put(COMMANDS, COMMAND(k, send_attempt[me * K + k], (IS_ACT(k) -> 1 : send_generation[me * STEPS + STEP(k)])));
            d_step {
                if
                :: confirmed[k] < send_attempt[me * K + k] -> confirmed[k] = send_attempt[me * K + k]
                :: else
                fi
            }
        :: FAULT(UNCONFIRMED) -> faults--; owing[me] = IN_DOUBT;
            SAY(("engine %d sends %c%d attempt %d: delivered, not confirmed\n", me, NAME_OF(k), send_attempt[me * K + k]));
            put(COMMANDS, COMMAND(k, send_attempt[me * K + k], (IS_ACT(k) -> 1 : send_generation[me * STEPS + STEP(k)])))
        :: FAULT(UNCONFIRMED) -> faults--; owing[me] = IN_DOUBT;
            SAY(("engine %d sends %c%d attempt %d: lost, not confirmed\n", me, NAME_OF(k), send_attempt[me * K + k]))
        :: FAULT(RETURNED) -> faults--;
            SAY(("engine %d sends %c%d attempt %d: returned\n", me, NAME_OF(k), send_attempt[me * K + k]));
            owing[me] = (owing[me] == IN_DOUBT -> IN_DOUBT : RETURNED_COMMAND(k, send_attempt[me * K + k]))
        fi
    :: else
    fi
}

inline send_notice_of(me) {
    if
    :: send_notice[me] != NOTHING ->
        if
        :: d_step {
                told = told || (send_notice[me] == PARKED && row.parked) ||
                    (send_notice[me] == ENDED_COMPLETED && row.status == COMPLETED) ||
                    (send_notice[me] == ENDED_COMPENSATED && row.status == COMPENSATED) }
        :: FAULT(UNCONFIRMED) -> faults--; owing[me] = IN_DOUBT; SAY(("engine %d tells how it stands: lost\n", me))
        fi
    :: else
    fi
}

inline send_all(me) {
    send_command(me, 0);
    send_command(me, 1);
    send_command(me, 2);
    send_command(me, 3);
#if STEPS == 3
    send_command(me, 4);
    send_command(me, 5);
#endif
    send_notice_of(me)
}

/* _OWE and _SETTLE: only if the saga has not moved since. */
inline mark(me) {
    d_step {
        if
        :: owing[me] != NOT_OWED ->
            if
            :: !overtaken[me] && !MUTANT_OWES_NOTHING -> row.owed = owing[me]; SAY(("engine %d marks the debt %d\n", me, owing[me]))
            :: else -> SAY(("engine %d does not mark the debt %d: the saga has moved\n", me, owing[me]))
            fi
        :: owing[me] == NOT_OWED && to_settle[me] && !overtaken[me] -> row.owed = NOT_OWED; SAY(("engine %d settles\n", me))
        :: else
        fi
    }
}


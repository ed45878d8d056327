/* One event, two listeners, the sweeper, and what may go wrong: crashes, pauses (a process is just not scheduled, and its
 * lease runs out), a Redis that forgets, a MongoDB restored to an older state. Each store operation is one step; anything may
 * happen between two of them.
 *
 * Checked:  never two commits                                    assert in commit()
 *           nothing leaves the inbox unless the ledger has it     assert in remove()
 *           the accepted event is finished in the end             ltl finished, under weak fairness
 *
 * Broken on purpose, to see the checks fail:
 *   -DNO_FENCE        a commit does not look at the ledger's unique key
 *   -DREDIS_DECIDES   the sweeper removes what Redis calls done
 *   -DNO_FORGET       the sweeper leaves a mark of done alone that MongoDB refutes
 *   -DNO_SWEEPER      nobody sends again
 */
#define LISTENERS 2
#define NONE 0
#define STALE 8 /* held under the claim id of a process that died */
#define DONE 9

bool inbox = true;      /* accepted by majority */
bool ledger = false;    /* the unique document, by majority */
byte commits = 0;       /* commits that stood since MongoDB was last restored */
byte claim = NONE;      /* Redis: NONE, the claim id of a listener's run (1, 2), STALE, or DONE */
bool lease = false;     /* the claim's lease runs */
byte deliveries = LISTENERS; /* copies in the broker, the fan-out's to begin with */

byte running = 0;       /* runs under way: MongoDB is restored while nobody works, as operators are told to */

byte crashes = 2, pauses = 1, losses = 1, restores = 1;

inline commit() {
  atomic {
#ifdef NO_FENCE
    ledger = true; commits++;
#else
    if
    :: !ledger -> ledger = true; commits++
    :: else -> skip                               /* a duplicate key: read again, skipped */
    fi;
#endif
    assert(commits <= 1)
  }
}

inline remove() {
  d_step { if :: inbox -> assert(ledger); inbox = false :: else -> skip fi }
}

/* complete and release compare the claim id */
inline complete() { d_step { if :: claim == NONE || claim == me -> claim = DONE; lease = false :: else -> skip fi } }
inline release()  { d_step { if :: claim == me -> claim = NONE; lease = false :: else -> skip fi } }

#define MAY_CRASH if :: atomic { crashes > 0 -> crashes-- }; goto dead :: true -> skip fi

active [LISTENERS] proctype Listener() {
  byte me = _pid + 1;
  bool won = false, done = false;
ready:
end_ready:
  do
  :: atomic { deliveries > 0 -> deliveries--; running++ }
     MAY_CRASH;
     atomic {                                     /* claim.lua */
       if
       :: claim == NONE || (claim != DONE && !lease) ->
            claim = me; lease = true; won = true
       :: else -> skip                            /* busy or done: acknowledged at once */
       fi
     }
     if
     :: !won -> skip
     :: else ->
        won = false;
        MAY_CRASH;
        if
        :: !inbox -> release()                    /* fetch: a missing batch proves nothing, it is given back */
        :: inbox ->
           MAY_CRASH;
           done = ledger;                         /* check, by majority */
           if
           :: done -> skip
           :: else -> MAY_CRASH; commit()
           fi;
           MAY_CRASH;
           done = ledger;                         /* own majority commit, or a majority read after a duplicate key */
           if
           :: done -> complete(); MAY_CRASH; remove()
           :: else -> release()
           fi;
           done = false
        fi
     fi;
     running--
  od;
dead:
  atomic { won = false; done = false; running--; if :: claim == me -> claim = STALE :: else -> skip fi };
  goto ready                                      /* another process takes its place; the claim stays until its lease ends */
}

#ifndef NO_SWEEPER
active proctype Sweeper() {
  bool finished = false, marked = false;
end_sweep:
  do
  :: atomic { inbox && deliveries == 0 && !lease -> marked = (claim == DONE); running++ } /* in no hands */
#ifdef REDIS_DECIDES
     if :: marked -> remove() :: else -> skip fi;
#endif
     finished = ledger;                           /* majority read */
     if
     :: finished -> finished = false; remove()
     :: else ->
#ifndef NO_FORGET
        d_step { if :: marked && claim == DONE -> claim = NONE :: else -> skip fi };
#endif
        d_step { if :: deliveries < LISTENERS -> deliveries++ :: else -> skip fi }
     fi;
     atomic { marked = false; running-- }
  od
}
#endif

/* A lease runs out: in time when its owner is dead or gone on, and, as often as pauses allow, under a living owner. */
active proctype Time() {
end_time:
  do
  :: atomic { lease && claim == STALE -> lease = false }
  :: atomic { lease && claim != STALE && pauses > 0 -> pauses--; lease = false }
  od
}

active proctype Faults() {
end_faults:
  do
  :: atomic { losses > 0 -> losses--; claim = NONE; lease = false; deliveries = 0 }          /* FLUSHALL */
  :: atomic { restores > 0 && ledger && running == 0 -> restores--; ledger = false; inbox = true; commits = 0 } /* an older backup */
  :: break
  od
}

ltl finished { <>[] (ledger && !inbox) }

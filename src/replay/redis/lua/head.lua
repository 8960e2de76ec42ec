-- Where the log is, and whether it is still served by the same process. Answers epoch, run, newest.

open(true)
return {state.epoch, state.run, text(state.newest)}

//! What a bridge machine has on the host goes with it, and nothing else ever goes.

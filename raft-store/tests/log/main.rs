//! The raft log against openraft's own suite, a model, crashes, faults and damage.

mod model;
mod suite;

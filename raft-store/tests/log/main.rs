//! The raft log against openraft's own suite, a model, crashes, faults and damage.

mod damage;
mod fault;
mod group;
mod model;
mod suite;

//! Tests of the rules as a whole: golden scripts, and random programs against a naive model.

mod auth;
mod fuzz;
mod generate;
mod golden;
mod language;
mod locks;
mod model;
mod primitives;
mod print;
mod property;
mod registry;
mod registry_coalesce;
mod registry_words;
mod roster;
mod store;
mod wanted;

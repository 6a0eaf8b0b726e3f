//! Text towers.

pub mod bert;

//! Ending a run by Ctrl-C or by the system.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;

use super::note;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM only ask to stop; the second of them ends the process.
pub fn listen() -> anyhow::Result<()> {
    let asked = || {
        if ASKED.swap(true, Ordering::Relaxed) {
            process::exit(130);
        }
        note("stopping after this step; the run can be continued from its checkpoint");
    };
    ctrlc::set_handler(asked).context("listening to signals")
}

/// Whether one of them has come.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

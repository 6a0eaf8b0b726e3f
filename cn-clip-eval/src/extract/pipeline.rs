//! Preparing batches while the device computes.

use std::{sync::mpsc::sync_channel, thread};

use cn_clip_data::DataError;

use super::{ExtractError, input::Entry};

/// Batches prepared ahead.
const PREFETCH: usize = 2;

/// Cuts `entries` into batches, prepares them in a thread of its own and hands them to `compute` in
/// order. The first error ends it.
pub(super) fn run_ahead<T: Send, P: Send, E>(
    entries: impl Iterator<Item = Result<Entry<T>, DataError>> + Send,
    batch_size: usize,
    prepare: impl Fn(Vec<Entry<T>>) -> Result<P, DataError> + Send,
    mut compute: impl FnMut(P) -> Result<(), ExtractError<E>>,
) -> Result<(), ExtractError<E>> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(PREFETCH);
        scope.spawn(move || {
            let mut entries = entries;
            loop {
                let batch: Result<Vec<_>, _> = entries.by_ref().take(batch_size.max(1)).collect();
                let prepared = match batch {
                    Ok(batch) if batch.is_empty() => return,
                    batch => batch.and_then(&prepare),
                };
                let failed = prepared.is_err();
                if sender.send(prepared).is_err() || failed {
                    return;
                }
            }
        });
        receiver.into_iter().try_for_each(|prepared| compute(prepared?))
    })
}

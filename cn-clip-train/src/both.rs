//! Two towers at the same time, on threads of rayon.

use std::sync::mpsc::channel;

/// Runs both, at the same time if `concurrently`.
pub fn both<A: Send, B: Send>(
    concurrently: bool,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    match concurrently {
        true => rayon::join(first, second),
        false => (first(), second()),
    }
}

/// Runs both as [`both`] does, and hands what they give to `receive`: on this thread, all of the
/// first before that of the second, while they go on.
pub fn in_order<T: Send>(
    concurrently: bool,
    first: impl FnOnce(&mut dyn FnMut(T)) + Send,
    second: impl FnOnce(&mut dyn FnMut(T)) + Send,
    receive: &mut dyn FnMut(T),
) {
    // A thread of rayon that waits here could be the one that is waited for.
    if !concurrently || rayon::current_thread_index().is_some() {
        first(receive);
        second(receive);
        return;
    }
    let ((to_first, from_first), (to_second, from_second)) = (channel(), channel());
    rayon::in_place_scope(|scope| {
        // A receiver is only gone when this thread panics.
        scope.spawn(move |_| first(&mut |item| to_first.send(item).unwrap_or_default()));
        scope.spawn(move |_| second(&mut |item| to_second.send(item).unwrap_or_default()));
        from_first.into_iter().chain(from_second).for_each(receive);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_whoever_is_faster() {
        for concurrently in [false, true] {
            let mut seen = Vec::new();
            let slow = |give: &mut dyn FnMut(usize)| {
                for item in 0..3 {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    give(item);
                }
            };
            let fast = |give: &mut dyn FnMut(usize)| (3..6).for_each(give);
            in_order(concurrently, slow, fast, &mut |item| seen.push(item));
            assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn a_thread_of_rayon_does_not_wait_for_itself() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let run = || {
            let mut seen = Vec::new();
            let give = |give: &mut dyn FnMut(usize)| give(1);
            in_order(true, give, give, &mut |item| seen.push(item));
            seen
        };
        assert_eq!(pool.map(|pool| pool.install(run)).ok(), Some(vec![1, 1]));
    }
}

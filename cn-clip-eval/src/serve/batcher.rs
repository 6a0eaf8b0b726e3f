//! Dynamic batching: one thread owns what computes, and takes together what has queued up.

use std::{
    any::Any,
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use futures_util::future::try_join_all;
use tokio::sync::oneshot;

use super::{Batching, metrics::BatchMetrics};

/// Why a request got no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchError {
    /// The queue has no room for all of it.
    Full,
    /// The thread has ended.
    Stopped,
    /// The computation failed.
    Failed(String),
}

/// What computes a batch: the lane and its inputs, to one result for each.
pub(super) type Compute<I, O> = Box<dyn FnMut(usize, Vec<I>) -> Vec<Result<O, String>> + Send>;

/// A queue with lanes in front of a thread that computes; a batch is of one lane.
pub(super) struct Batcher<I, O> {
    shared: Arc<Shared<I, O>>,
}

struct Shared<I, O> {
    queue: Mutex<Queue<I, O>>,
    arrived: Condvar,
    batching: Batching,
    metrics: Vec<BatchMetrics>,
}

struct Queue<I, O> {
    lanes: Vec<VecDeque<Job<I, O>>>,
    closed: bool,
}

struct Job<I, O> {
    input: I,
    arrived: Instant,
    /// Closed when the client has gone.
    reply: oneshot::Sender<Result<O, String>>,
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the thread, with a lane for each of `metrics`.
    pub fn start(
        name: &str,
        batching: Batching,
        metrics: Vec<BatchMetrics>,
        mut compute: Compute<I, O>,
    ) -> io::Result<Self> {
        let lanes = metrics.iter().map(|_| VecDeque::new()).collect();
        let queue = Mutex::new(Queue { lanes, closed: false });
        let shared = Arc::new(Shared { queue, arrived: Condvar::new(), batching, metrics });
        let worker = shared.clone();
        thread::Builder::new().name(name.to_string()).spawn(move || {
            while let Some((lane, jobs)) = worker.next_batch() {
                worker.run(lane, jobs, &mut compute);
            }
        })?;
        Ok(Self { shared })
    }

    /// Queues all inputs or none, and waits for their results. When the future is dropped, those not
    /// begun are never computed.
    pub async fn submit(&self, lane: usize, inputs: Vec<I>) -> Result<Vec<O>, BatchError> {
        let arrived = Instant::now();
        let (jobs, receivers): (Vec<_>, Vec<_>) = inputs
            .into_iter()
            .map(|input| {
                let (reply, receiver) = oneshot::channel();
                (Job { input, arrived, reply }, receiver)
            })
            .unzip();
        self.shared.push(lane, jobs)?;
        try_join_all(receivers.into_iter().map(async |receiver| match receiver.await {
            Ok(result) => result.map_err(BatchError::Failed),
            Err(_) => Err(BatchError::Stopped),
        }))
        .await
    }
}

impl<I, O> Drop for Batcher<I, O> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

impl<I, O> Shared<I, O> {
    fn lock(&self) -> MutexGuard<'_, Queue<I, O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, lane: usize, jobs: Vec<Job<I, O>>) -> Result<(), BatchError> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(BatchError::Stopped);
        }
        let lane_jobs = &mut queue.lanes[lane];
        if lane_jobs.len() + jobs.len() > self.batching.queue {
            self.drop_abandoned(lane, lane_jobs);
            if lane_jobs.len() + jobs.len() > self.batching.queue {
                return Err(BatchError::Full);
            }
        }
        lane_jobs.extend(jobs);
        self.metrics[lane].waiting(lane_jobs.len());
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    fn drop_abandoned(&self, lane: usize, jobs: &mut VecDeque<Job<I, O>>) {
        let before = jobs.len();
        jobs.retain(|job| !job.reply.is_closed());
        self.metrics[lane].abandoned(before - jobs.len());
    }

    /// Waits for a batch; `None` when the queue is closed and empty.
    fn next_batch(&self) -> Option<(usize, Vec<Job<I, O>>)> {
        let mut queue = self.lock();
        loop {
            for (lane, jobs) in queue.lanes.iter_mut().enumerate() {
                self.drop_abandoned(lane, jobs);
            }
            let now = Instant::now();
            let closed = queue.closed;
            // When a lane's batch begins: at once if it is full.
            let due = |jobs: &VecDeque<Job<I, O>>| {
                let first = jobs.front()?.arrived;
                let full = closed || jobs.len() >= self.batching.size;
                Some((if full { now } else { first + self.batching.wait }, first))
            };
            let waiting = || queue.lanes.iter().map(due).enumerate();
            let ready = waiting()
                .filter_map(|(lane, due)| due.filter(|due| due.0 <= now).map(|due| (due.1, lane)))
                .min();
            if let Some((_, lane)) = ready {
                let jobs = &mut queue.lanes[lane];
                let batch = jobs.drain(..jobs.len().min(self.batching.size)).collect();
                self.metrics[lane].waiting(jobs.len());
                return Some((lane, batch));
            }
            let next = waiting().filter_map(|(_, due)| due).map(|due| due.0).min();
            queue = match next {
                Some(due) => {
                    let wait = self.arrived.wait_timeout(queue, due.saturating_duration_since(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None if closed => return None,
                None => self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn run(&self, lane: usize, jobs: Vec<Job<I, O>>, compute: &mut Compute<I, O>) {
        let began = Instant::now();
        let (inputs, replies): (Vec<I>, Vec<_>) =
            jobs.into_iter().map(|job| (job.input, job.reply)).unzip();
        let size = inputs.len();
        // A backend may panic, for one when a device is out of memory; the next batch may succeed.
        let results = catch_unwind(AssertUnwindSafe(|| compute(lane, inputs)));
        self.metrics[lane].computed(size, began.elapsed());
        let results = results.unwrap_or_else(|cause| {
            let reason = format!("the computation failed: {}", panic_message(cause.as_ref()));
            (0..size).map(|_| Err(reason.clone())).collect()
        });
        for (reply, result) in replies.into_iter().zip(results) {
            // Nobody minds whose client has gone.
            let _ = reply.send(result);
        }
    }
}

fn panic_message(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::serve::metrics::Metrics;

    /// A batcher of two lanes that tells of its batches and waits for leave to compute each.
    struct Watched {
        batcher: Arc<Batcher<u32, u32>>,
        batches: mpsc::Receiver<(usize, Vec<u32>)>,
        leave: mpsc::Sender<()>,
        metrics: Metrics,
    }

    fn watched(batching: Batching) -> Watched {
        let metrics = Metrics::default();
        let (told, batches) = mpsc::channel();
        let (leave, granted) = mpsc::channel();
        let compute = move |lane: usize, inputs: Vec<u32>| {
            told.send((lane, inputs.clone())).unwrap();
            granted.recv().unwrap();
            assert!(!inputs.contains(&13), "unlucky");
            let double = |input: u32| match input {
                0 => Err("zero".to_string()),
                other => Ok(2 * other),
            };
            inputs.into_iter().map(double).collect()
        };
        let lanes = vec![metrics.lane("text"), metrics.lane("image")];
        let batcher = Batcher::start("test", batching, lanes, Box::new(compute)).unwrap();
        Watched { batcher: Arc::new(batcher), batches, leave, metrics }
    }

    fn batching(size: usize, queue: usize) -> Batching {
        Batching { size, wait: Duration::from_millis(1), queue }
    }

    type Answer = tokio::task::JoinHandle<Result<Vec<u32>, BatchError>>;

    impl Watched {
        fn submit(&self, lane: usize, inputs: Vec<u32>) -> Answer {
            let batcher = self.batcher.clone();
            tokio::spawn(async move { batcher.submit(lane, inputs).await })
        }

        /// Waits until that many wait in the lanes.
        async fn waiting(&self, counts: [usize; 2]) {
            let lengths = || {
                let queue = self.batcher.shared.lock();
                [queue.lanes[0].len(), queue.lanes[1].len()]
            };
            while lengths() != counts {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_queues_up_is_computed_together_and_lanes_take_turns() {
        let watched = watched(batching(4, 100));
        let first = watched.submit(0, vec![1]);
        assert_eq!(watched.batches.recv().unwrap(), (0, vec![1]));
        let image = watched.submit(1, vec![7]);
        watched.waiting([0, 1]).await;
        let many = watched.submit(0, vec![2, 3, 4, 5, 6]);
        watched.waiting([5, 1]).await;
        // Longer than a batch waits for more.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for expected in [(1, vec![7]), (0, vec![2, 3, 4, 5]), (0, vec![6])] {
            watched.leave.send(()).unwrap();
            assert_eq!(watched.batches.recv().unwrap(), expected);
        }
        watched.leave.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(vec![2]));
        assert_eq!(image.await.unwrap(), Ok(vec![14]));
        assert_eq!(many.await.unwrap(), Ok(vec![4, 6, 8, 10, 12]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_queue_refuses_whole_requests() {
        let watched = watched(batching(1, 3));
        let running = watched.submit(0, vec![1]);
        watched.batches.recv().unwrap();
        let queued = watched.submit(0, vec![2, 3]);
        watched.waiting([2, 0]).await;
        assert_eq!(watched.batcher.submit(0, vec![4, 5]).await, Err(BatchError::Full));
        watched.waiting([2, 0]).await;
        (0..3).for_each(|_| watched.leave.send(()).unwrap());
        assert_eq!(running.await.unwrap(), Ok(vec![2]));
        assert_eq!(queued.await.unwrap(), Ok(vec![4, 6]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_work_of_clients_that_have_gone_is_dropped() {
        let watched = watched(batching(8, 3));
        let running = watched.submit(0, vec![1]);
        watched.batches.recv().unwrap();
        let gone = watched.submit(0, vec![2, 3, 4]);
        watched.waiting([3, 0]).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        // Their room is free again.
        let stays = watched.submit(0, vec![5, 6]);
        watched.waiting([2, 0]).await;
        watched.leave.send(()).unwrap();
        assert_eq!(watched.batches.recv().unwrap(), (0, vec![5, 6]));
        watched.leave.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(vec![2]));
        assert_eq!(stays.await.unwrap(), Ok(vec![10, 12]));
        assert!(watched.metrics.render().contains("abandoned_total{lane=\"text\"} 3"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn failures_and_panics_are_answered_and_the_thread_goes_on() {
        let watched = watched(batching(1, 10));
        (0..4).for_each(|_| watched.leave.send(()).unwrap());
        let failed = |reason: &str| Err(BatchError::Failed(reason.to_string()));
        assert_eq!(watched.batcher.submit(0, vec![0]).await, failed("zero"));
        let unlucky = watched.batcher.submit(0, vec![13]).await;
        assert_eq!(unlucky, failed("the computation failed: unlucky"));
        assert_eq!(watched.batcher.submit(1, vec![3, 4]).await, Ok(vec![6, 8]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_queued_is_finished_when_the_queue_closes() {
        let watched = watched(Batching { wait: Duration::from_secs(3600), ..batching(4, 10) });
        let queued = watched.submit(0, vec![1, 2]);
        watched.waiting([2, 0]).await;
        // Neither full nor due: only closing begins it.
        watched.batcher.shared.lock().closed = true;
        watched.batcher.shared.arrived.notify_all();
        watched.leave.send(()).unwrap();
        assert_eq!(queued.await.unwrap(), Ok(vec![2, 4]));
        assert_eq!(watched.batcher.submit(0, vec![1]).await, Err(BatchError::Stopped));
    }
}

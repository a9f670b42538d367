//! Deadlines and retries of requests to the agent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A source of random numbers for jitter. Need not be cryptographically secure.
pub type Random = Arc<dyn Fn() -> u32 + Send + Sync>;

/// How an [`Agent`](super::Agent) sends requests.
#[derive(Clone)]
pub struct AgentOptions {
    /// Deadline of one attempt without a quote.
    pub deadline: Duration,
    /// Deadline of one attempt with a quote. One quote takes 39 ms on hardware, and the whole machine
    /// makes one at a time.
    pub quote_deadline: Duration,
    /// Maximum number of attempts, including the first. 0 is treated as 1.
    pub attempts: u32,
    /// Delay before the second attempt. Doubled for each further attempt.
    pub initial_backoff: Duration,
    /// Maximum delay between two attempts.
    pub max_backoff: Duration,
    /// Jitter: spreads each delay between half of it and all of it. `None`: no jitter.
    pub random: Option<Random>,
}

impl Default for AgentOptions {
    /// 5 s, or 10 s with a quote; three attempts with 200 ms and 400 ms between them; no jitter.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            quote_deadline: Duration::from_secs(10),
            attempts: 3,
            initial_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(2),
            random: None,
        }
    }
}

impl AgentOptions {
    /// The delay after attempt number `attempt`, counted from 1.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1));
        let longest = self
            .initial_backoff
            .saturating_mul(doubled)
            .min(self.max_backoff);
        match &self.random {
            None => longest,
            Some(random) => {
                let half = longest / 2;
                half + half.mul_f64(f64::from(random()) / f64::from(u32::MAX))
            }
        }
    }
}

impl fmt::Debug for AgentOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentOptions")
            .field("deadline", &self.deadline)
            .field("quote_deadline", &self.quote_deadline)
            .field("attempts", &self.attempts)
            .field("initial_backoff", &self.initial_backoff)
            .field("max_backoff", &self.max_backoff)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(random: Option<Random>) -> Vec<u128> {
        let options = AgentOptions {
            random,
            ..AgentOptions::default()
        };
        let attempts = [1, 2, 3, 4, 5, 40, u32::MAX];
        attempts.map(|n| options.backoff(n).as_millis()).to_vec()
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        assert_eq!(delays(None), [200, 400, 800, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn jitter_spreads_delays_over_their_second_half() {
        let least = delays(Some(Arc::new(|| 0)));
        assert_eq!(least, [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(delays(Some(Arc::new(|| u32::MAX))), delays(None));
    }
}

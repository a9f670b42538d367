//! How often, and for how long, the agent is asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Any numbers: they spread attempts in time, and protect nothing.
pub type Random = Arc<dyn Fn() -> u32 + Send + Sync>;

/// How an [`Agent`](super::Agent) asks.
#[derive(Clone)]
pub struct AgentOptions {
    /// Longest time of one attempt that needs no quote.
    pub deadline: Duration,
    /// Longest time of one attempt that needs a quote. One takes 39 ms on hardware, and the whole
    /// machine's quotes are made one after another.
    pub quote_deadline: Duration,
    /// How often a question is asked at most, the first time included. 0 is as 1.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub initial_backoff: Duration,
    /// Longest wait between two attempts.
    pub max_backoff: Duration,
    /// Spreads each wait between half of it and all of it. `None`: all of it.
    pub random: Option<Random>,
}

impl Default for AgentOptions {
    /// 5 s, 10 s with a quote, three attempts with 200 ms and 400 ms between them, not spread.
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
    /// How long to wait after attempt number `attempt`, which is 1 for the first.
    pub(super) fn wait(&self, attempt: u32) -> Duration {
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

    fn waits(random: Option<Random>) -> Vec<u128> {
        let options = AgentOptions {
            random,
            ..AgentOptions::default()
        };
        let attempts = [1, 2, 3, 4, 5, 40, u32::MAX];
        attempts.map(|n| options.wait(n).as_millis()).to_vec()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        assert_eq!(waits(None), [200, 400, 800, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn waits_are_spread_over_their_second_half() {
        let least = waits(Some(Arc::new(|| 0)));
        assert_eq!(least, [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(waits(Some(Arc::new(|| u32::MAX))), waits(None));
    }
}

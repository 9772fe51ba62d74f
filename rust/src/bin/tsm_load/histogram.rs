//! Delays, counted in buckets.

/// Counts of delays in buckets whose width is under 1 % of their value.
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    pub max: u64,
}

/// Buckets per power of two.
const STEPS: u32 = 7;

impl Histogram {
    pub fn new() -> Self {
        Self { buckets: vec![0; (64 - STEPS as usize + 1) << STEPS], count: 0, max: 0 }
    }

    pub fn add(&mut self, value: u64) {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS + 1);
        let index = ((shift as usize) << STEPS) + (value >> shift) as usize;
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// The lower edge of the bucket that holds the given share of all values.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut sum = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            sum += bucket;
            if sum >= wanted.max(1) {
                let shift = (index >> STEPS).saturating_sub(1);
                return ((index - (shift << STEPS)) as u64) << shift;
            }
        }
        self.max
    }

    /// Some quantiles in microseconds, as a JSON object.
    pub fn summary(&self) -> String {
        let us = |share: f64| self.quantile(share) as f64 / 1e3;
        format!(
            "{{\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}",
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            self.max as f64 / 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_hundredth() {
        let mut delays = Histogram::new();
        (1..=100_000u64).for_each(|v| delays.add(v * 10));
        for (share, exact) in [(0.5, 500_000.0), (0.9, 900_000.0), (0.99, 990_000.0)] {
            let error = (delays.quantile(share) as f64 - exact).abs() / exact;
            assert!(error < 0.01, "{share}: {error}");
        }
        assert_eq!(delays.max, 1_000_000);
    }
}

//! Whether two samples of numbers come from one distribution.

/// The two-sample Kolmogorov–Smirnov test: the largest distance between the two empirical distributions, and the probability of one
/// at least as large if both samples are of the same distribution (the asymptotic series, good for samples of a hundred and more).
///
/// # Panics
/// If a sample is empty.
pub fn kolmogorov_smirnov(one: &[f64], other: &[f64]) -> (f64, f64) {
    assert!(!one.is_empty() && !other.is_empty(), "nothing to compare");
    let sorted = |sample: &[f64]| {
        let mut sample = sample.to_vec();
        sample.sort_by(f64::total_cmp);
        sample
    };
    let (one, other) = (sorted(one), sorted(other));
    let (n, m) = (count(one.len()), count(other.len()));
    let (mut i, mut j, mut distance) = (0, 0, 0_f64);
    while i < one.len() && j < other.len() {
        // Ties are passed in both samples before the distance is taken.
        let at = one[i].min(other[j]);
        i += one[i..].iter().take_while(|value| **value <= at).count();
        j += other[j..].iter().take_while(|value| **value <= at).count();
        distance = distance.max((count(i) / n - count(j) / m).abs());
    }
    let root = (n * m / (n + m)).sqrt();
    (distance, tail((root + 0.12 + 0.11 / root) * distance))
}

/// The probability that Kolmogorov's distribution exceeds `x`.
fn tail(x: f64) -> f64 {
    if x < 0.3 {
        return 1.0; // to nine digits, where the series converges slowly
    }
    let terms = (1_i32..=100).map(|k| {
        let sign = if k % 2 == 1 { 2.0 } else { -2.0 };
        sign * (-2.0 * f64::from(k * k) * x * x).exp()
    });
    terms.sum::<f64>().clamp(0.0, 1.0)
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("samples are small"))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// Times as a server's: a floor, some noise, and a tail.
    fn times(rng: &mut StdRng, n: usize, factor: f64) -> Vec<f64> {
        let mut one = || {
            let noise: f64 = (0..6).map(|_| rng.random::<f64>()).sum::<f64>() / 6.0;
            let late = if rng.random_ratio(1, 20) { rng.random::<f64>() * 5.0 } else { 0.0 };
            factor * (1.0 + 0.5 * noise + late)
        };
        (0..n).map(|_| one()).collect()
    }

    #[test]
    fn the_tail_is_that_of_the_tables() {
        for (x, p) in [(0.828, 0.5), (1.224, 0.1), (1.358, 0.05), (1.628, 0.01), (1.949, 0.001)] {
            assert!((tail(x) - p).abs() < p / 50.0, "{x}: {}", tail(x));
        }
        assert!((tail(0.0) - 1.0).abs() < 1e-9 && (tail(0.3) - 1.0).abs() < 1e-4 && tail(5.0) < 1e-20);
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        let distance = |one: &[f64], other: &[f64]| kolmogorov_smirnov(one, other).0;
        assert!(distance(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) < 1e-12, "the same, in another order");
        assert!((distance(&[1.0, 2.0], &[3.0, 4.0]) - 1.0).abs() < 1e-12, "apart");
        assert!((distance(&[1.0, 2.0, 2.0, 3.0], &[2.0, 2.0, 2.0, 3.0]) - 0.25).abs() < 1e-12, "with ties");
        assert!((distance(&[1.0], &[0.0, 2.0]) - 0.5).abs() < 1e-12, "of two sizes");
    }

    #[test]
    fn five_per_cent_are_told_apart_and_equals_are_not() {
        let mut rng = StdRng::seed_from_u64(5);
        let (mut accepted, mut flagged) = (0, 0);
        for _ in 0..100 {
            let (one, same, slower) = (times(&mut rng, 2_000, 1.0), times(&mut rng, 2_000, 1.0), times(&mut rng, 2_000, 1.05));
            accepted += u32::from(kolmogorov_smirnov(&one, &same).1 > 0.05);
            flagged += u32::from(kolmogorov_smirnov(&one, &slower).1 < 0.001);
        }
        // One in twenty equals is below 0.05: that is what the number means.
        assert!((88..=99).contains(&accepted), "{accepted}");
        assert_eq!(flagged, 100);
    }
}

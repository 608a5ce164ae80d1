//! How fast a figure grows: least squares.

/// The slope of the line that fits these points best; 0 for fewer than two different moments.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (together, spread) = points.iter().fold((0.0, 0.0), |(together, spread), (x, y)| {
        (together + (x - mean_x) * (y - mean_y), spread + (x - mean_x).powi(2))
    });
    if spread > 0.0 { together / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_lines_height_nor_symmetric_noise_changes_its_slope() {
        let line: Vec<_> = (0..100).map(|x| (f64::from(x), 7.0 + 3.0 * f64::from(x))).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        let noisy: Vec<_> = [(0.0, 1.0), (1.0, -1.0), (2.0, -1.0), (3.0, 1.0)].into();
        assert!(slope(&noisy).abs() < 1e-9);
    }

    #[test]
    fn too_few_points_have_no_slope() {
        assert!(slope(&[]).abs() < 1e-9);
        assert!(slope(&[(1.0, 5.0)]).abs() < 1e-9);
        assert!(slope(&[(1.0, 5.0), (1.0, 9.0)]).abs() < 1e-9);
    }
}

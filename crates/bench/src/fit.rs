//! A straight line through measurements.

/// A straight line through points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Rise per unit.
    pub slope: f64,
    /// At zero.
    pub intercept: f64,
    /// Share of the variance that the line explains.
    pub r_squared: f64,
}

/// The least-squares line. None for fewer than two different places.
pub fn fit(points: &[(f64, f64)]) -> Option<Fit> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.len() < 2 || spread == 0.0 {
        return None;
    }
    let together: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let slope = together / spread;
    let intercept = mean_y - slope * mean_x;
    let total: f64 = points.iter().map(|(_, y)| (y - mean_y).powi(2)).sum();
    let left: f64 = points.iter().map(|(x, y)| (y - intercept - slope * x).powi(2)).sum();
    let r_squared = if total == 0.0 { 1.0 } else { 1.0 - left / total };
    Some(Fit { slope, intercept, r_squared })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found() {
        let found = fit(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).expect("a line");
        assert!((found.slope - 2.0).abs() < 1e-12 && (found.intercept - 1.0).abs() < 1e-12);
        assert!((found.r_squared - 1.0).abs() < 1e-12);
        // By hand: slope 0.5, intercept 1/3, residuals −1/3, 2/3, −1/3 of a variance of 2/3+….
        let found = fit(&[(0.0, 0.0), (1.0, 1.5), (2.0, 1.0)]).expect("a line");
        assert!((found.slope - 0.5).abs() < 1e-12);
        assert!((found.r_squared - 3.0 / 7.0).abs() < 1e-12, "{found:?}");
        assert_eq!(fit(&[(1.0, 1.0)]), None);
        assert_eq!(fit(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }
}

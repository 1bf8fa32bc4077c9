//! How fast memory is, and which share of what the chip's maker says.
//!
//! Copy reads an array of float32 and writes as much (`x + 1`): twice its size in bytes moved.
//! Read sums it up. The best run counts: the others measure the neighbours.

use crate::machine::available_memory_bytes;
use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, Output, Session};
use crate::table::Table;
use crate::worker::{DeviceFlags, measure, report};
use mlxd_protocol::measure::{Figure, Measurement};
use serde_json::json;

const SIZES_MB: [u64; 6] = [100, 250, 500, 1000, 2000, 4000];
const QUICK_SIZES_MB: [u64; 2] = [16, 64];

/// What makers say of their chips, in GB/s, longest names first. Where a name has several
/// (M3 Max, M4 Max), the larger.
const CHIPS: [(&str, f64); 23] = [
    ("Apple M1 Ultra", 800.0),
    ("Apple M1 Max", 400.0),
    ("Apple M1 Pro", 200.0),
    ("Apple M1", 68.25),
    ("Apple M2 Ultra", 800.0),
    ("Apple M2 Max", 400.0),
    ("Apple M2 Pro", 200.0),
    ("Apple M2", 100.0),
    ("Apple M3 Ultra", 819.0),
    ("Apple M3 Max", 400.0),
    ("Apple M3 Pro", 150.0),
    ("Apple M3", 100.0),
    ("Apple M4 Max", 546.0),
    ("Apple M4 Pro", 273.0),
    ("Apple M4", 120.0),
    ("Apple M5", 153.6),
    ("NVIDIA H200", 4800.0),
    ("NVIDIA H100 PCIe", 2000.0),
    ("NVIDIA H100", 3350.0),
    ("NVIDIA A100-SXM4-80GB", 2039.0),
    ("NVIDIA A100", 1555.0),
    ("NVIDIA L40S", 864.0),
    ("NVIDIA L4", 300.0),
];

/// `mlxd bench bandwidth`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Sizes of the array, in MB [default: 100 to 4000, as memory allows].
    #[arg(long, value_name = "MB,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=8000))]
    sizes: Vec<u64>,
    /// Timed runs per size; the best counts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// What the chip's maker says, where it is not known here.
    #[arg(long, value_name = "GB/S")]
    chip_bandwidth: Option<f64>,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "bandwidth";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let program = session.front.worker_program(self.device.config.as_deref())?;
        let quick = self.output.quick;
        let (sizes, left_out) = self.sizes(available_memory_bytes());
        let runs = if quick { self.runs.min(3) } else { self.runs };
        let device = self.device.device.into();
        let what = Measurement::Bandwidth { device, sizes_bytes: sizes, runs };
        let measured = measure(&program, Self::NAME, &what).await?;
        let mut report = report(Self::NAME, &self.output, None, &measured);
        report.notes.extend(left_out);
        let chip = report.machine.device.as_ref().unwrap_or(&report.machine.chip).clone();
        let peak = self.chip_bandwidth.or_else(|| chip_bandwidth(&chip));
        let mut table = Table::new("Memory bandwidth")
            .key("size_mb", "Array MB")
            .higher("copy_gb_s", "Copy GB/s", 1)
            .higher("read_gb_s", "Read GB/s", 1)
            .fact("share_percent", "Best, % of the chip's", 1);
        for figure in &measured.figures {
            let Figure::Bandwidth { size_bytes, copy_s, read_s } = figure else { continue };
            let size = *size_bytes as f64;
            let best = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
            let (copy, read) = (2.0 * size / best(copy_s) / 1e9, size / best(read_s) / 1e9);
            table.row([
                json!((size / 1e6).round() as u64),
                json!(copy),
                json!(read),
                json!(peak.map(|peak| copy.max(read) / peak * 100.0)),
            ]);
        }
        report.notes.push(match peak {
            Some(peak) => format!("{chip}: {peak} GB/s by its maker."),
            None => {
                format!("{chip}: its maker's figure is not known here; --chip-bandwidth gives it.")
            }
        });
        report.plots.push(
            Plot::new("Memory bandwidth", "array, MB", "GB/s")
                .log_x()
                .line("copy", table.points("size_mb", "copy_gb_s"))
                .line("read", table.points("size_mb", "read_gb_s")),
        );
        report.tables.push(table);
        Ok(report)
    }
}

impl Arguments {
    /// Sizes in bytes, and what was left out. A copy holds two arrays, and half of what is
    /// available stays for others; sizes asked for by hand are taken as they are.
    fn sizes(&self, available_bytes: u64) -> (Vec<u64>, Option<String>) {
        let bytes = |sizes: &[u64]| sizes.iter().map(|mb| mb * 1_000_000).collect::<Vec<u64>>();
        if !self.sizes.is_empty() {
            return (bytes(&self.sizes), None);
        }
        if self.output.quick {
            return (bytes(&QUICK_SIZES_MB), None);
        }
        let (fit, rest): (Vec<u64>, Vec<u64>) =
            bytes(&SIZES_MB).into_iter().partition(|size| size * 4 <= available_bytes);
        let note = (!rest.is_empty()).then(|| {
            let rest: Vec<_> = rest.iter().map(|size| format!("{}", size / 1_000_000)).collect();
            format!(
                "Left out: {} MB, of which four do not fit into available memory.",
                rest.join(", ")
            )
        });
        (fit, note)
    }
}

fn chip_bandwidth(chip: &str) -> Option<f64> {
    CHIPS.iter().find(|(name, _)| chip.starts_with(name)).map(|(_, peak)| *peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_known_by_their_whole_name() {
        assert_eq!(chip_bandwidth("Apple M1"), Some(68.25));
        assert_eq!(chip_bandwidth("Apple M1 Max"), Some(400.0));
        assert_eq!(chip_bandwidth("NVIDIA H100 80GB HBM3"), Some(3350.0));
        assert_eq!(chip_bandwidth("Intel(R) Xeon(R) Processor"), None);
    }

    #[test]
    fn sizes_leave_memory_to_others() {
        let all = crate::all::tests::arguments::<Arguments>(&[]);
        let (sizes, note) = all.sizes(2_000_000_000);
        assert_eq!(sizes, [100_000_000, 250_000_000, 500_000_000]);
        assert!(note.expect("a note").contains("1000, 2000, 4000 MB"));
        assert_eq!(all.sizes(64 << 30), (SIZES_MB.map(|mb| mb * 1_000_000).to_vec(), None));
        let given = crate::all::tests::arguments::<Arguments>(&["--sizes", "7,9"]);
        assert_eq!(given.sizes(0), (vec![7_000_000, 9_000_000], None));
    }
}

//! Linux's text files of memory figures, read from texts and from a folder that stands for `/`.
//!
//! Pure but for reading files below the given root, so that both kinds of control groups and all
//! kinds of limits are tested on any system.

use std::path::{Path, PathBuf};

/// Total and available bytes of `/proc/meminfo`.
pub fn meminfo(text: &str) -> Option<(u64, u64)> {
    Some((kib_field(text, "MemTotal:")?, kib_field(text, "MemAvailable:")?))
}

/// What `/proc/PID/smaps_rollup` counts for the process: its share of shared pages, and what of it
/// is swapped out.
pub fn proportional(text: &str) -> Option<u64> {
    Some(kib_field(text, "Pss:")? + kib_field(text, "SwapPss:").unwrap_or(0))
}

/// A field of `/proc/PID/status` and its like, whose lines are `Name:  12 kB`.
pub fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

/// `avg10` of the lines `some` and `full` of a pressure file.
pub fn stalls(text: &str) -> (Option<f64>, Option<f64>) {
    let of = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
    };
    (of("some"), of("full"))
}

/// Which version of control groups counts our memory, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// One controller a tree.
    V1(PathBuf),
    /// One tree.
    V2(PathBuf),
}

/// A control group's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The smallest limit of the group and of those above it.
    pub limit: u64,
    /// What is left below it, files' pages that could be dropped counted as left.
    pub available: u64,
}

/// Limits above this are none: version 1 writes "none" as a number near the largest.
const NO_LIMIT: u64 = 1 << 60;

impl Group {
    /// The group that `membership` (the text of `/proc/self/cgroup`) names, below `mount`
    /// (`/sys/fs/cgroup`). In a container the names may be those of the outside: then the mount's
    /// own top is ours.
    pub fn find(membership: &str, mount: &Path) -> Option<Self> {
        let path_of = |line: &str, controllers: &str| {
            let mut parts = line.splitn(3, ':');
            let (_, listed, path) = (parts.next()?, parts.next()?, parts.next()?);
            let named = listed.split(',').any(|controller| controller == controllers);
            named.then(|| path.trim_start_matches('/').to_owned())
        };
        let within = |top: PathBuf, path: String, file: &str| {
            let own = top.join(path);
            let found = if own.join(file).is_file() { own } else { top };
            found.is_dir().then_some(found)
        };
        if let Some(path) = membership.lines().find_map(|line| path_of(line, "memory")) {
            return within(mount.join("memory"), path, "memory.limit_in_bytes").map(Self::V1);
        }
        let path = membership.lines().find_map(|line| path_of(line, ""))?;
        within(mount.to_owned(), path, "memory.current").map(Self::V2)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        match self {
            Self::V1(folder) | Self::V2(folder) => folder,
        }
    }

    /// The tightest room from this group up to `mount`; `None` where nothing limits it.
    pub fn room(&self, mount: &Path) -> Option<Room> {
        let groups = self.folder().ancestors().take_while(|folder| folder.starts_with(mount));
        let rooms = groups.filter_map(|folder| self.room_of(folder));
        rooms.reduce(|a, b| Room {
            limit: a.limit.min(b.limit),
            available: a.available.min(b.available),
        })
    }

    fn room_of(&self, folder: &Path) -> Option<Room> {
        let (limit, usage, inactive) = match self {
            Self::V1(_) => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            Self::V2(_) => ("memory.max", "memory.current", "inactive_file"),
        };
        // Version 2 writes "max" for none, which is no number.
        let limit = number(&folder.join(limit)).filter(|limit| *limit < NO_LIMIT)?;
        let usage = number(&folder.join(usage)).unwrap_or(0);
        let droppable = counter(&folder.join("memory.stat"), inactive).unwrap_or(0);
        let available = limit.saturating_sub(usage.saturating_sub(droppable));
        Some(Room { limit, available })
    }

    /// How often the group's memory was at its limit.
    pub fn limit_hits(&self) -> Option<u64> {
        match self {
            Self::V1(folder) => number(&folder.join("memory.failcnt")),
            Self::V2(folder) => {
                let events = folder.join("memory.events");
                Some(counter(&events, "high")? + counter(&events, "max")?)
            }
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line `name value` of a file of such lines.
fn counter(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        if key == name { value.trim().parse().ok() } else { None }
    };
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_texts() {
        let text = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   23716044 kB\n";
        assert_eq!(meminfo(text), Some((24_684_096 << 10, 23_716_044 << 10)));
        assert_eq!(meminfo("MemTotal: x kB"), None);
        let rollup =
            "55 r--p [rollup]\nRss:  100 kB\nPss:  40 kB\nPss_Anon: 30 kB\nSwapPss: 2 kB\n";
        assert_eq!(proportional(rollup), Some(42 << 10));
        let psi = "some avg10=1.25 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.50 avg60=0.00\n";
        assert_eq!(stalls(psi), (Some(1.25), Some(0.5)));
        assert_eq!(stalls(""), (None, None));
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn version_two_takes_the_tightest_of_the_groups_above() {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("sys/fs/cgroup");
        let stat = ("memory.stat", "anon 5\ninactive_file 300\nfile 900\n");
        write(&mount.join("a"), &[("memory.max", "5000\n"), ("memory.current", "4000\n"), stat]);
        write(
            &mount.join("a/b"),
            &[
                ("memory.max", "max\n"),
                ("memory.current", "2000\n"),
                ("memory.events", "low 0\nhigh 3\nmax 4\noom 1\noom_kill 1\n"),
            ],
        );
        let group = Group::find("0::/a/b\n", &mount).unwrap();
        assert_eq!(group, Group::V2(mount.join("a/b")));
        assert_eq!(group.room(&mount), Some(Room { limit: 5000, available: 1300 }));
        assert_eq!(group.limit_hits(), Some(7));
        // No limit anywhere: no room to keep to.
        std::fs::write(mount.join("a/memory.max"), "max\n").unwrap();
        assert_eq!(group.room(&mount), None);
    }

    #[test]
    fn version_one_is_found_beside_the_others_and_in_a_container() {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("sys/fs/cgroup");
        let files = [
            ("memory.limit_in_bytes", "1000\n"),
            ("memory.usage_in_bytes", "900\n"),
            ("memory.failcnt", "6\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 50\n"),
        ];
        write(&mount.join("memory/x"), &files);
        let membership = "9:name=systemd:/\n4:memory:/x\n1:cpu,cpuacct:/\n0::/\n";
        let group = Group::find(membership, &mount).unwrap();
        assert_eq!(group, Group::V1(mount.join("memory/x")));
        assert_eq!(group.room(&mount), Some(Room { limit: 1000, available: 150 }));
        assert_eq!(group.limit_hits(), Some(6));
        // The name is the outside's; what is mounted is the group itself.
        let outside = "4:memory:/docker/0123\n";
        assert_eq!(Group::find(outside, &mount), Some(Group::V1(mount.join("memory"))));
        std::fs::write(mount.join("memory/x/memory.limit_in_bytes"), "9223372036854771712")
            .unwrap();
        assert_eq!(group.room(&mount), None);
        assert_eq!(Group::find("", &mount), None);
    }
}

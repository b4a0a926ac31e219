//! Numbers: memory, disk, load, temperature. Read when they are asked for, and at no other time.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_protocol::health::Numbers;
use nix::sys::statvfs::statvfs;

/// Reads numbers, and knows what it read before.
#[derive(Clone, Debug)]
pub struct Meter {
    /// `/`, or another root in tests.
    root: PathBuf,
    state_dir: PathBuf,
    /// Time that all processors were busy, and all time, in ticks, when it was read before.
    ticks: Option<(u64, u64)>,
}

impl Meter {
    /// Of this gateway, with the file system of `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { root: "/".into(), state_dir: state_dir.to_owned(), ticks: None }
    }

    /// Reads everything. What cannot be read is left out.
    pub fn read(&mut self) -> Numbers {
        let meminfo = self.text("proc/meminfo");
        let memory = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        let stat = self.text("proc/stat");
        let processors = stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        let mut numbers = Numbers {
            memory_total_kib: memory("MemTotal:"),
            memory_available_kib: memory("MemAvailable:"),
            load_hundredths: load(&self.text("proc/loadavg")),
            processors: u32::try_from(processors).ok().filter(|count| *count > 0),
            cpu_percent: self.cpu(&stat),
            temperature_tenths: self.temperature(),
            ..Numbers::default()
        };
        self.disk(&mut numbers);
        numbers
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    /// How busy processors were since the last time.
    fn cpu(&mut self, stat: &str) -> Option<u8> {
        let now = ticks(stat)?;
        let before = self.ticks.replace(now)?;
        let busy = now.0.checked_sub(before.0)?;
        let all = now.1.checked_sub(before.1).filter(|all| *all > 0)?;
        u8::try_from(busy.saturating_mul(100) / all).ok().map(|percent| percent.min(100))
    }

    /// The hottest zone's temperature
    /// (<https://docs.kernel.org/driver-api/thermal/sysfs-api.html>): thousandths of a degree.
    fn temperature(&self) -> Option<i32> {
        let zones = fs::read_dir(self.root.join("sys/class/thermal")).ok()?;
        let zones = zones.flatten().filter(|zone| {
            zone.file_name().to_str().is_some_and(|name| name.starts_with("thermal_zone"))
        });
        let read = |zone: fs::DirEntry| {
            let text = fs::read_to_string(zone.path().join("temp")).ok()?;
            let thousandths: i32 = text.trim().parse().ok()?;
            // Sensors that are not there give absurd values.
            (-60_000..=200_000).contains(&thousandths).then_some(thousandths / 100)
        };
        zones.filter_map(read).max()
    }

    #[allow(clippy::useless_conversion, reason = "the counts have 32 bits on 32-bit systems")]
    fn disk(&self, numbers: &mut Numbers) {
        // Where it is not there yet, it will be made in its nearest ancestor.
        let Some(usage) = self.state_dir.ancestors().find_map(|dir| statvfs(dir).ok()) else {
            return;
        };
        let kib = |blocks: u64| {
            let bytes = u128::from(blocks) * u128::from(usage.fragment_size());
            u64::try_from(bytes / 1024).ok()
        };
        numbers.disk_total_kib = kib(usage.blocks().into());
        numbers.disk_free_kib = kib(usage.blocks_available().into());
        let inodes = u64::from(usage.files());
        if inodes > 0 {
            numbers.inodes_total = Some(inodes);
            numbers.inodes_free = Some(usage.files_available().into());
        }
    }
}

/// `0.37 0.21 0.11 1/123 4567` (proc_loadavg(5)).
fn load(text: &str) -> Option<u32> {
    let (whole, part) = text.split_whitespace().next()?.split_once('.')?;
    let part = format!("{part:0<2}");
    let hundredths: u32 = part.get(..2)?.parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths)
}

/// Busy and all ticks of the first line of `/proc/stat` (proc_stat(5)): user, nice, system, idle,
/// iowait, irq, softirq, steal; what guests use is in user already.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let counts: Vec<u64> = line.split_whitespace().take(8).map_while(|w| w.parse().ok()).collect();
    let idle = counts.get(3)?.saturating_add(counts.get(4).copied().unwrap_or(0));
    let all = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    Some((all.saturating_sub(idle), all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        let place = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:  1014000 kB\nMemFree: 1 kB\nMemAvailable: 421000 kB\n");
        write("proc/loadavg", "1.07 0.21 0.11 1/123 4567\n");
        write("proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1\ncpu1 1 1 1\nintr 5\n");
        write("sys/class/thermal/thermal_zone0/temp", "52300\n");
        write("sys/class/thermal/thermal_zone1/temp", "-274000\n");
        write("sys/class/thermal/cooling_device0/temp", "99000\n");
        let mut meter = Meter::new(&place.path().join("not/there/yet"));
        meter.root = place.path().to_owned();
        let numbers = meter.read();
        assert_eq!(numbers.memory_total_kib, Some(1_014_000));
        assert_eq!(numbers.memory_available_kib, Some(421_000));
        assert_eq!((numbers.load_hundredths, numbers.processors), (Some(107), Some(2)));
        assert_eq!(numbers.temperature_tenths, Some(523));
        assert_eq!(numbers.cpu_percent, None, "nothing is known of before");
        assert!(numbers.disk_total_kib >= numbers.disk_free_kib);
        write("proc/stat", "cpu  120 0 105 875 0 0 0 0 0 0\n");
        assert_eq!(meter.read().cpu_percent, Some(25));
    }

    #[test]
    fn what_is_not_there_or_cannot_be_read_is_left_out() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("proc")).unwrap();
        for (file, text) in [("meminfo", "MemTotal: x kB"), ("loadavg", "1"), ("stat", "cpu  1")] {
            fs::write(place.path().join("proc").join(file), text).unwrap();
        }
        let mut meter = Meter::new(place.path());
        meter.root = place.path().to_owned();
        meter.read();
        let Numbers { disk_total_kib, disk_free_kib, inodes_total, inodes_free, .. } = meter.read();
        let disk = Numbers {
            disk_total_kib,
            disk_free_kib,
            inodes_total,
            inodes_free,
            ..Numbers::default()
        };
        assert_eq!(meter.read(), disk);
    }

    #[test]
    fn this_machine_has_numbers() {
        let numbers = Meter::new(Path::new("/var/lib/coracle")).read();
        assert!(numbers.memory_total_kib > numbers.memory_available_kib);
        assert!(numbers.load_hundredths.is_some() && numbers.processors.is_some());
    }
}

//! Samples of `perf record`, told apart by the machine code that they fell on.
//!
//! Matrix products are inlined into the tasks of the layers, so the names of functions do not tell
//! them. Their inner loops do: multiply-adds of vectors with values broadcast from memory and little
//! else, between which the weights of later ones are fetched ahead.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, bail};

/// Instructions before and after the one sampled that are looked at.
const AROUND: usize = 12;
/// Multiply-adds among them, and broadcasts, that make the loop of a product.
const MULTIPLY_ADDS: usize = 8;
const BROADCASTS: usize = 3;

/// Samples by what was going on.
#[derive(Debug, Default, PartialEq)]
pub struct Profile {
    products: usize,
    /// All other samples, by function.
    rest: BTreeMap<String, usize>,
}

impl Profile {
    /// Reads what perf wrote about this process.
    pub fn read(data: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
        let base = base(&maps, &program).context("finding this program in memory")?;
        let mut script = Command::new("perf");
        script.args(["script", "--fields", "ip,sym", "--input"]).arg(data);
        let samples = output(script)?;
        let mut disassemble = Command::new("objdump");
        disassemble.args(["--disassemble", "--no-show-raw-insn"]).arg(program);
        let code = Code::parse(&output(disassemble)?);
        Ok(Self::sort(&samples, &code, base))
    }

    fn sort(samples: &str, code: &Code, base: u64) -> Self {
        let mut profile = Self::default();
        for sample in samples.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (address, name) = sample.split_once(' ').unwrap_or((sample, "?"));
            let address = u64::from_str_radix(address, 16).ok();
            let address = address.and_then(|address| address.checked_sub(base));
            let product = address.is_some_and(|address| code.is_product(address));
            // The library that Burn multiplies by.
            match product || name.contains("gemm") {
                true => profile.products += 1,
                false => *profile.rest.entry(short(name)).or_default() += 1,
            }
        }
        profile
    }

    /// Prints the shares.
    pub fn print(&self) {
        let total = self.products + self.rest.values().sum::<usize>();
        let share = |count: usize| 100.0 * count as f64 / total.max(1) as f64;
        println!("{total} samples");
        println!("{:6.1} %  matrix products", share(self.products));
        let mut rest: Vec<_> = self.rest.iter().collect();
        rest.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in rest.iter().take(12) {
            println!("{:6.1} %  {name}", share(**count));
        }
        let other = rest.iter().skip(12).map(|(_, count)| **count).sum();
        println!("{:6.1} %  {} other functions", share(other), rest.len().saturating_sub(12));
    }
}

/// Where the start of the file lies in memory.
fn base(maps: &str, program: &Path) -> Option<u64> {
    let program = program.to_str()?;
    let line = maps.lines().find(|line| {
        line.ends_with(program) && line.split_whitespace().nth(2) == Some("00000000")
    })?;
    u64::from_str_radix(line.split_once('-')?.0, 16).ok()
}

/// The beginning of a name.
fn short(name: &str) -> String {
    let name: String = name.chars().take(72).collect();
    name.trim().to_string()
}

/// Instructions in order of their addresses.
struct Code(Vec<(u64, Kind)>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    MultiplyAdd,
    Broadcast,
    Prefetch,
    Other,
}

impl Code {
    fn parse(listing: &str) -> Self {
        let instruction = |line: &str| {
            let (address, text) = line.trim_start().split_once(":\t")?;
            let address = u64::from_str_radix(address, 16).ok()?;
            let multiply_add = text.starts_with("vfmadd") && text.contains("ps");
            let kind = match (multiply_add, text.starts_with("vbroadcastss") && text.contains('('))
            {
                (true, _) => Kind::MultiplyAdd,
                (_, true) => Kind::Broadcast,
                _ if text.starts_with("prefetch") => Kind::Prefetch,
                _ => Kind::Other,
            };
            Some((address, kind))
        };
        Self(listing.lines().filter_map(instruction).collect())
    }

    fn is_product(&self, address: u64) -> bool {
        let Ok(index) = self.0.binary_search_by_key(&address, |(address, _)| *address) else {
            return false;
        };
        let around = index.saturating_sub(AROUND)..(index + AROUND).min(self.0.len());
        let count = |kind| self.0[around.clone()].iter().filter(|(_, own)| *own == kind).count();
        let multiplies =
            count(Kind::MultiplyAdd) >= MULTIPLY_ADDS && count(Kind::Broadcast) >= BROADCASTS;
        multiplies || count(Kind::Prefetch) > 0
    }
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> String {
        let line = |index: usize, text: &str| format!("  {:x}:\t{text}\n", 0x1000 + 4 * index);
        let mut lines = String::from("\n0000000000001000 <name>:\n");
        for index in 0..40 {
            let text = if index == 0 { "prefetcht0 (%rax)" } else { "mov    %rax,%rbx" };
            lines += &line(index, text);
        }
        for index in 40..80 {
            let broadcast = index % 3 == 0;
            let text = match broadcast {
                true => "vbroadcastss 0x4(%rdi),%ymm1",
                false => "vfmadd231ps %ymm0,%ymm1,%ymm2",
            };
            lines += &line(index, text);
        }
        lines
    }

    #[test]
    fn loops_of_products_are_found() {
        let code = Code::parse(&listing());
        assert!(code.is_product(0x1000) && !code.is_product(0x1000 + 4 * 20));
        assert!(code.is_product(0x1000 + 4 * 60));
        assert!(!code.is_product(0));
    }

    #[test]
    fn samples_are_sorted() {
        let maps = "55000-56000 r--p 00000000 fe:00 7   /x/xtask\n56000-57000 r-xp 00001000 fe:00 7   \
                    /x/xtask\n";
        let base = base(maps, Path::new("/x/xtask")).unwrap();
        assert_eq!(base, 0x55000);
        let samples = "  560f0 task::run\n 56050 task::run\n 7f00 gemm_f32::kernel\n\n ffffff81 \
                       clear_page\n";
        let profile = Profile::sort(samples, &Code::parse(&listing()), base);
        let rest = [("clear_page".to_string(), 1), ("task::run".to_string(), 1)];
        assert_eq!(profile, Profile { products: 2, rest: rest.into() });
    }
}

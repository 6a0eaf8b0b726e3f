//! Samples of `perf record`, told apart by the machine code that they fell on.
//!
//! Matrix products are inlined into the tasks of the layers, so the names of functions do not tell
//! them. Their loops do: multiply-adds of vectors with values broadcast from memory and little else,
//! between which the weights of later ones are fetched ahead.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, bail};

/// Multiply-adds in the loop of a product, and broadcasts.
const MULTIPLY_ADDS: usize = 8;
const BROADCASTS: usize = 3;
/// One of so many of its instructions, at least, is a multiply-add.
const INSTRUCTIONS: usize = 3;

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

/// Machine code.
struct Code {
    /// Addresses of the instructions, in order.
    addresses: Vec<u64>,
    /// Whether the innermost loop around each is that of a product.
    products: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    MultiplyAdd,
    Broadcast,
    Prefetch,
    Jump(u64),
    Other,
}

impl Kind {
    fn parse(text: &str) -> Self {
        let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
        if name.starts_with("vfmadd") && name.ends_with("ps") {
            return Self::MultiplyAdd;
        }
        // Constants lie beside the code.
        if name == "vbroadcastss" && operands.contains('(') && !operands.contains("(%rip)") {
            return Self::Broadcast;
        }
        if name.starts_with("prefetch") {
            return Self::Prefetch;
        }
        let target = operands.split_whitespace().next().unwrap_or_default();
        match (name.starts_with('j'), u64::from_str_radix(target, 16)) {
            (true, Ok(target)) => Self::Jump(target),
            _ => Self::Other,
        }
    }
}

impl Code {
    fn parse(listing: &str) -> Self {
        let instruction = |line: &str| {
            let (address, text) = line.trim_start().split_once(":\t")?;
            Some((u64::from_str_radix(address, 16).ok()?, Kind::parse(text)))
        };
        let (addresses, kinds): (Vec<_>, Vec<_>) = listing.lines().filter_map(instruction).unzip();
        let mut products = vec![false; kinds.len()];
        // A jump backwards ends a loop; of nested ones the inner is looked at last.
        let mut loops = Vec::new();
        for (end, kind) in kinds.iter().enumerate() {
            if let Kind::Jump(target) = kind
                && let Ok(start) = addresses.binary_search(target)
                && start <= end
            {
                loops.push(start..end + 1);
            }
        }
        loops.sort_by_key(|range| std::cmp::Reverse(range.len()));
        for range in loops {
            let product = is_product(&kinds[range.clone()]);
            products[range].fill(product);
        }
        Self { addresses, products }
    }

    fn is_product(&self, address: u64) -> bool {
        self.addresses.binary_search(&address).is_ok_and(|index| self.products[index])
    }
}

/// Whether this is the loop of a product, or one that fetches ahead.
fn is_product(kinds: &[Kind]) -> bool {
    let count = |kind| kinds.iter().filter(|own| **own == kind).count();
    let multiply_adds = count(Kind::MultiplyAdd);
    let multiplies = multiply_adds >= MULTIPLY_ADDS
        && multiply_adds * INSTRUCTIONS >= kinds.len()
        && count(Kind::Broadcast) >= BROADCASTS;
    multiplies || (multiply_adds == 0 && count(Kind::Prefetch) > 0)
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

    /// A loop that fetches, one of a product and one of a polynomial, between other instructions.
    fn listing() -> String {
        let mut lines = String::from("\n0000000000001000 <name>:\n");
        let mut line = |text: &str| {
            let index = lines.lines().count() - 2;
            lines += &format!("  {:x}:\t{text}\n", 0x1000 + 4 * index);
        };
        let mut lines_of = |count: usize, texts: &[&str]| {
            texts.iter().cycle().take(count).for_each(|text| line(text));
        };
        lines_of(10, &["mov    %rax,%rbx"]);
        lines_of(2, &["prefetcht0 (%rax)", "jne    1028 <name+0x28>"]);
        lines_of(10, &["mov    %rax,%rbx"]);
        let step = ["vbroadcastss 0x4(%rdi),%ymm1", "vfmadd231ps %ymm0,%ymm1,%ymm2"];
        lines_of(40, &[step[0], step[1], step[1]]);
        lines_of(4, &["inc    %r13", "cmp    $0x10,%r13", "jne    1058 <name+0x58>", "ret"]);
        let step = ["vbroadcastss 0x4(%rip),%ymm1        # 93618 <x>", step[1]];
        lines_of(30, &[step[0], step[1], step[1]]);
        lines_of(2, &["jne    1108 <name+0x108>", "ret"]);
        lines
    }

    #[test]
    fn loops_of_products_are_found() {
        let code = Code::parse(&listing());
        let product = |index: u64| code.is_product(0x1000 + 4 * index);
        assert!((0..10).all(|index| !product(index)), "before");
        assert!(product(10) && product(11), "fetching");
        assert!((12..22).all(|index| !product(index)), "between");
        assert!((22..65).all(product), "the whole loop, with its end");
        assert!((65..100).all(|index| !product(index)), "a polynomial");
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

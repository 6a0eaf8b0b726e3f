//! Order of the samples of an epoch: that of PyTorch's `DistributedSampler`, number for number.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use rand_mt::Mt;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{error::DataError, loader::mix, source::PairSource};

/// Pairs rounded up to whole global batches; what is added are the first pairs again.
pub fn padded_len(pairs: usize, global_batch: usize) -> usize {
    pairs.next_multiple_of(global_batch.max(1))
}

/// Pair indices that `rank` of `world` sees in `epoch` (counted from 0), batches one after the
/// other: `torch.randperm` over the padded length, seeded with `seed + epoch`, every `world`-th
/// entry, indices wrapped to the number of pairs (`cn_clip/training/data.py`).
pub fn epoch_order(
    pairs: usize,
    global_batch: usize,
    seed: u64,
    epoch: u64,
    rank: usize,
    world: usize,
) -> Vec<usize> {
    if pairs == 0 {
        return Vec::new();
    }
    let permutation = random_permutation(padded_len(pairs, global_batch), seed + epoch);
    permutation.into_iter().skip(rank).step_by(world.max(1)).map(|index| index % pairs).collect()
}

/// `torch.randperm(count)` of a CPU generator with this seed.
fn random_permutation(count: usize, seed: u64) -> Vec<usize> {
    // torch seeds its generator with the low half.
    let mut generator = Mt::new(seed as u32);
    let mut order: Vec<usize> = (0..count).collect();
    // torch changes to 64-bit draws where the bias of 32 bits would be noticeable.
    let wide = count as u64 > u64::from(u32::MAX) / 20;
    for index in 0..count.saturating_sub(1) {
        let draw = match wide {
            true => u64::from(generator.next_u32()) << 32 | u64::from(generator.next_u32()),
            false => u64::from(generator.next_u32()),
        };
        order.swap(index, index + (draw % (count - index) as u64) as usize);
    }
    order
}

/// Reorders an epoch so that no two pairs of a batch share a key, such as a picture or a caption:
/// pairs that share one are positives of each other and must not be taken for negatives.
///
/// A pair that does not fit the batch at hand is kept for the next. What cannot form a whole batch
/// at the end is left out, so the result is a whole number of batches.
pub fn exclusive_order<'a>(
    order: &[usize],
    batch: usize,
    keys: impl Fn(usize) -> &'a [u64],
) -> Vec<usize> {
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let mut fresh = order.iter().copied();
    let mut out = Vec::with_capacity(order.len());
    loop {
        let mut used = HashSet::new();
        let mut chosen = Vec::with_capacity(batch);
        let mut still_waiting = VecDeque::new();
        while chosen.len() < batch {
            let Some(index) = waiting.pop_front().or_else(|| fresh.next()) else { break };
            if keys(index).iter().any(|key| used.contains(key)) {
                still_waiting.push_back(index);
            } else {
                used.extend(keys(index).iter().copied());
                chosen.push(index);
            }
        }
        still_waiting.append(&mut waiting);
        waiting = still_waiting;
        if chosen.is_empty() || chosen.len() < batch {
            return out;
        }
        out.extend(chosen);
    }
}

/// Pairs of each picture, pictures in the order in which they first occur.
///
/// # Errors
/// When a pair cannot be read or there are 2^32 or more.
pub fn one_caption_groups(source: &dyn PairSource) -> Result<Vec<Vec<u32>>, DataError> {
    let count = u32::try_from(source.len()).map_err(|_| {
        DataError::Config("one caption per picture needs fewer than 2^32 pairs".to_string())
    })?;
    let key = |index: u32| {
        let index = index as usize;
        let mut hasher = DefaultHasher::new();
        source.part(index).hash(&mut hasher);
        source.pair(index)?.image_id.hash(&mut hasher);
        Ok(hasher.finish())
    };
    let keys = (0..count).into_par_iter().map(key).collect::<Result<Vec<u64>, DataError>>()?;
    let mut places: FxHashMap<u64, usize> = FxHashMap::default();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for (index, key) in (0..count).zip(keys) {
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    Ok(groups)
}

/// An epoch in which each picture occurs once, with a caption chosen by seed, epoch and picture:
/// pair indices in the order [`epoch_order`] gives the pictures, padded to whole batches likewise.
pub fn one_caption_order(groups: &[Vec<u32>], batch: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let chosen = |picture: usize| {
        let group = groups.get(picture)?;
        let draw = mix(mix(seed, epoch), picture as u64).checked_rem(group.len() as u64)?;
        group.get(draw as usize).map(|index| *index as usize)
    };
    epoch_order(groups.len(), batch, seed, epoch, 0, 1).into_iter().filter_map(chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Id, Pair},
        source::MemoryDataset,
    };

    #[test]
    fn orders_are_those_of_the_python_program() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/train_run/meta.json");
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let recorded = |name: &str| -> Vec<usize> {
            serde_json::from_value(meta["sample_order"][name].clone()).unwrap()
        };
        let pairs = meta["num_pairs"].as_u64().unwrap() as usize;
        for epoch in 0..3 {
            let order = epoch_order(pairs, 4, 123, epoch, 0, 1);
            assert_eq!(order, recorded(&format!("train_epoch{epoch}")));
        }
        assert_eq!(epoch_order(7, 3, 123, 0, 0, 1), recorded("valid"));
        for rank in 0..2 {
            let order = epoch_order(pairs, 8, 123, 0, rank, 2);
            assert_eq!(order, recorded(&format!("train_epoch0_world2_rank{rank}")));
        }
        assert_eq!(padded_len(pairs, 4), meta["padded"].as_u64().unwrap() as usize);
    }

    #[test]
    fn exclusive_batches_share_no_key() {
        // 300 pairs of 100 groups, three to a group.
        let keys: Vec<[u64; 1]> = (0..300).map(|pair| [pair / 3]).collect();
        let order = epoch_order(300, 1, 7, 0, 0, 1);
        let exclusive = exclusive_order(&order, 32, |pair| &keys[pair]);
        assert!(exclusive.len() >= 288 - 32, "{}", exclusive.len());
        for batch in exclusive.chunks(32) {
            let groups: HashSet<u64> = batch.iter().map(|pair| keys[*pair][0]).collect();
            assert_eq!(groups.len(), 32);
        }
        let distinct: HashSet<usize> = exclusive.iter().copied().collect();
        assert_eq!(distinct.len(), exclusive.len());
    }

    #[test]
    fn impossible_batches_are_left_out() {
        let keys = [[1u64], [1], [1]];
        assert!(exclusive_order(&[0, 1, 2], 2, |pair| &keys[pair]).is_empty());
        assert!(epoch_order(0, 4, 1, 0, 0, 1).is_empty());
    }

    #[test]
    fn every_picture_occurs_once_with_one_of_its_captions() {
        let pair = |picture: i64, text: &str| Pair {
            image_id: picture.into(),
            text_id: text.into(),
            text: text.to_string(),
        };
        // Picture p has p captions, here and there.
        let mut pairs: Vec<Pair> = Vec::new();
        for caption in 1..=9 {
            pairs.extend((caption..=9).map(|p| pair(p, &format!("{p}-{caption}"))));
        }
        let source = MemoryDataset { pairs, ..MemoryDataset::default() };
        let groups = one_caption_groups(&source).unwrap();
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2, 3, 4, 5, 6, 7, 8, 9]);

        let order = |epoch| one_caption_order(&groups, 1, 7, epoch);
        let mut chosen = HashSet::new();
        for epoch in 0..40 {
            let order = order(epoch);
            let pictures: HashSet<Id> =
                order.iter().map(|index| source.pairs[*index].image_id.clone()).collect();
            assert_eq!((order.len(), pictures.len()), (9, 9));
            chosen.extend(order);
        }
        assert_eq!(chosen.len(), source.pairs.len());
        assert_eq!(order(3), order(3));
        assert_eq!(one_caption_order(&groups, 4, 7, 0).len(), 12);
        assert!(one_caption_order(&[], 4, 7, 0).is_empty());
    }
}

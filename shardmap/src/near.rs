//! Which fence is nearest to a point that is in none: for each sixteenth of a cell the edges that can be, and no others.

use crate::fence::{Edge, Fence};
use crate::grid::{Bounds, Frame};
use crate::metric::{cos_q30, distance2};
use crate::point::{LAT_MAX_E7, Point};
use crate::problem::Problem;

/// Room for edges remembered, counted once for each cell: in proportion to the edges, so that no map can make the
/// index outgrow itself.
const KEPT_PER_EDGE: usize = 256;
const KEPT_MIN: usize = 1 << 20;

/// Lists of edges by block, a block being a cell's 4 x 4 parts.
#[derive(Debug, Default)]
pub(crate) struct Near {
    limit2: u64,
    edges: Vec<(Edge, u32)>,
    /// Where each part's list begins; it ends where the next begins.
    begins: Vec<u32>,
    lists: Vec<u32>,
}

impl Near {
    pub(crate) const NO_BLOCK: u32 = u32::MAX;

    /// The lists, and (cell, block) in the order of cells. `full` tells the cells that lie in a fence: nobody asks there.
    pub(crate) fn new(
        fences: &[Fence],
        frame: &Frame,
        limit: u64,
        full: impl Fn(u32) -> bool,
    ) -> Result<(Near, Vec<(u32, u32)>), Problem> {
        let mut near = Near { limit2: limit * limit, ..Near::default() };
        if limit == 0 {
            return Ok((near, Vec::new()));
        }
        for (n, fence) in fences.iter().enumerate() {
            near.edges.extend(fence.edges().map(|edge| (edge, n as u32)));
        }
        let kept_max = near.edges.len() * KEPT_PER_EDGE + KEPT_MIN;
        let too_many = || Problem::new("near_m is so wide that too many borders are near each other; make it smaller");
        let mut reached: Vec<(u32, u32)> = Vec::new();
        for (n, (edge, _)) in near.edges.iter().enumerate() {
            let b = Bounds::of([edge.lo, edge.hi].into_iter()).expect("two points have bounds").wider(limit);
            for row in frame.row(b.south.into())..=frame.row(b.north.into()) {
                let cells = frame.col(b.west.into())..=frame.col(b.east.into());
                let cells = cells.map(|col| row * frame.cols + col).filter(|cell| !full(*cell));
                reached.extend(cells.map(|cell| (cell, n as u32)));
            }
            if reached.len() > kept_max {
                return Err(too_many());
            }
        }
        reached.sort_unstable();
        let mut blocks = Vec::new();
        for group in reached.chunk_by(|a, b| a.0 == b.0) {
            let cell = group[0].0;
            let edges: Vec<u32> = group.iter().map(|(_, edge)| *edge).collect();
            if let Some(block) = near.add_block(frame, cell, &edges) {
                blocks.push((cell, block));
            }
            if near.lists.len() > kept_max {
                return Err(too_many());
            }
        }
        near.begins.push(near.lists.len() as u32);
        Ok((near, blocks))
    }

    fn add_block(&mut self, frame: &Frame, cell: u32, edges: &[u32]) -> Option<u32> {
        let (west, south) = frame.corner(cell);
        let edges = self.possible(edges, west, south, 1 << frame.shift);
        if edges.is_empty() {
            return None;
        }
        let side = 1i64 << (frame.shift - 2);
        let block = (self.begins.len() / 16) as u32;
        for sub in 0..16 {
            let list = self.possible(&edges, west + (sub % 4) * side, south + (sub / 4) * side, side);
            self.begins.push(self.lists.len() as u32);
            self.lists.extend(list);
        }
        Some(block)
    }

    /// The edges that are nearest to, and within the limit of, any point of a square. An edge drops out if even from the
    /// square's closest point it is farther than another one is from the square's farthest point.
    fn possible(&self, edges: &[u32], west: i64, south: i64, side: i64) -> Vec<u32> {
        let half = side / 2;
        let center = Point { lng_e7: (west + half) as i32, lat_e7: (south + half) as i32 };
        let on_globe = |lat: i64| lat.clamp(-i64::from(LAT_MAX_E7), i64::from(LAT_MAX_E7)) as i32;
        let (a, b) = (cos_q30(on_globe(south)), cos_q30(on_globe(south + side)));
        let cos_min = a.min(b);
        let cos_max = if south <= 0 && south + side >= 0 { 1 << 30 } else { a.max(b) };
        // Half the diagonal, and a few units for what the whole-number distances round away.
        let reach = |cos: i64| {
            let x = ((half + 1) * cos) >> 30;
            (x.unsigned_abs().pow(2) + (half + 1).unsigned_abs().pow(2)).isqrt() + 16
        };
        let (reach_min, reach_max) = (reach(cos_min), reach(cos_max));
        let distance = |n: u32, cos| distance2(center, &self.edges[n as usize].0, cos).isqrt();
        let best = edges.iter().map(|n| distance(*n, cos_max)).min().unwrap_or(0).saturating_add(reach_max);
        let most = best.min(self.limit2.isqrt() + 1).saturating_add(reach_min);
        edges.iter().copied().filter(|n| distance(*n, cos_min) <= most).collect()
    }

    /// The fence whose border is nearest, within the limit; of two equally near the first in order.
    pub(crate) fn nearest(&self, p: Point, block: u32, sub: u32) -> Option<usize> {
        if block == Near::NO_BLOCK {
            return None;
        }
        let at = (block * 16 + sub) as usize;
        let list = &self.lists[self.begins[at] as usize..self.begins[at + 1] as usize];
        let cos = cos_q30(p.lat_e7);
        let near = list.iter().map(|n| {
            let (edge, fence) = &self.edges[*n as usize];
            (distance2(p, edge, cos), *fence)
        });
        near.min().filter(|(d2, _)| *d2 <= self.limit2).map(|(_, fence)| fence as usize)
    }
}

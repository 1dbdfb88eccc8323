//! The index over the fences: a grid whose cells say "inside this fence", "nothing", or name the few edges that matter.
//!
//! ```text
//! +-------+-------+-------+    a cell that no edge touches: one fence or none, no polygon test
//! |   A   |   A   | A / B |    a cell with edges: for each fence there, in order, the edges that pass through the cell,
//! +-------+-------+--/----+    plus one upright edge far in the east for each stretch of latitudes at which an odd
//! |   A   | A |___|_/  B  |    number of the fence's other edges lies east of the cell. So counting the crossings of
//! +-------+---+---+-------+    these few gives the parity that all edges would give, exactly.
//! ```
//! Points in no fence ask the cell's quarter of a quarter (4 x 4) which edges can be nearest from there.

use crate::fence::{Edge, Fence, How};
use crate::near::Near;
use crate::point::{LAT_MAX_E7, LNG_MAX_E7, Point};
use crate::problem::Problem;

/// Cells of a grid, at most; below that, so many for each edge.
const CELLS_MAX: u64 = 1 << 20;
const CELLS_MIN: u64 = 1 << 10;
const CELLS_PER_EDGE: u64 = 8;
/// Cells that fences and edges may touch, counted once for each: a grid that is finer than this is made coarser.
const TOUCHED_PER_EDGE: u64 = 16;
const TOUCHED_MIN: u64 = 1 << 16;

const EMPTY: u32 = 0;
const INSIDE: u32 = 1 << 30;
const MIXED: u32 = 2 << 30;
const INDEX: u32 = INSIDE - 1;

/// A grid over the fences of one map.
#[derive(Debug, Default)]
pub struct Grid {
    frame: Frame,
    cells: Vec<u32>,
    mixed: Vec<Mixed>,
    candidates: Vec<Candidate>,
    edges: Vec<Edge>,
    near: Near,
}

/// Where the grid lies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    west: i32,
    south: i32,
    /// A cell's side is 2^shift units.
    pub(crate) shift: u32,
    pub(crate) cols: u32,
    pub(crate) rows: u32,
}

/// A cell with edges, or near some.
#[derive(Clone, Copy, Debug)]
struct Mixed {
    first: u32,
    end: u32,
    /// A block of `near`.
    near: u32,
}

/// A fence that part of a cell is in; without edges: all of it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    fence: u32,
    first: u32,
    end: u32,
}

impl Frame {
    /// The column and row of a point; `None` outside the grid.
    #[inline]
    fn cell(&self, p: Point) -> Option<usize> {
        let col = p.lng_e7.wrapping_sub(self.west) as u32 >> self.shift;
        let row = p.lat_e7.wrapping_sub(self.south) as u32 >> self.shift;
        let inside = p.lng_e7 >= self.west && p.lat_e7 >= self.south && col < self.cols && row < self.rows;
        inside.then(|| (row * self.cols + col) as usize)
    }

    pub(crate) fn col(&self, lng_e7: i64) -> u32 {
        Frame::slot(lng_e7 - i64::from(self.west), self.shift, self.cols)
    }
    pub(crate) fn row(&self, lat_e7: i64) -> u32 {
        Frame::slot(lat_e7 - i64::from(self.south), self.shift, self.rows)
    }
    fn slot(from_corner: i64, shift: u32, count: u32) -> u32 {
        (from_corner.max(0) >> shift).min(i64::from(count) - 1) as u32
    }

    /// The south-west corner of a cell.
    pub(crate) fn corner(&self, cell: u32) -> (i64, i64) {
        let (row, col) = (cell / self.cols, cell % self.cols);
        (i64::from(self.west) + (i64::from(col) << self.shift), i64::from(self.south) + (i64::from(row) << self.shift))
    }

    fn with_shift(mut self, shift: u32, east: i32, north: i32) -> Frame {
        let count = |lo: i32, hi: i32| ((i64::from(hi) - i64::from(lo)) >> shift) as u32 + 1;
        (self.shift, self.cols, self.rows) = (shift, count(self.west, east), count(self.south, north));
        self
    }

    /// How many cells a box covers.
    fn covered(&self, b: &Bounds) -> u64 {
        let cols = self.col(b.east.into()) - self.col(b.west.into()) + 1;
        let rows = self.row(b.north.into()) - self.row(b.south.into()) + 1;
        u64::from(cols) * u64::from(rows)
    }
}

/// A box of points.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) west: i32,
    pub(crate) east: i32,
    pub(crate) south: i32,
    pub(crate) north: i32,
}

impl Bounds {
    pub(crate) fn of(points: impl Iterator<Item = Point>) -> Option<Bounds> {
        let one = |p: Point| Bounds { west: p.lng_e7, east: p.lng_e7, south: p.lat_e7, north: p.lat_e7 };
        points.map(one).reduce(|a, b| Bounds {
            west: a.west.min(b.west),
            east: a.east.max(b.east),
            south: a.south.min(b.south),
            north: a.north.max(b.north),
        })
    }

    /// Wider by a distance in units on all sides, within the globe.
    pub(crate) fn wider(&self, units: u64) -> Bounds {
        let by = units as i64;
        let lat = |v: i64| v.clamp(-i64::from(LAT_MAX_E7), i64::from(LAT_MAX_E7)) as i32;
        let (south, north) = (lat(i64::from(self.south) - by), lat(i64::from(self.north) + by));
        let cos = crate::metric::cos_q30(south.unsigned_abs().max(north.unsigned_abs()) as i32).max(1);
        let by = ((i128::from(by) << 30) / i128::from(cos)).min(1 << 33) as i64 + 1;
        let lng = |v: i64| v.clamp(-i64::from(LNG_MAX_E7), i64::from(LNG_MAX_E7)) as i32;
        let by = if units == 0 { 0 } else { by };
        Bounds { west: lng(i64::from(self.west) - by), east: lng(i64::from(self.east) + by), south, north }
    }
}

impl Grid {
    /// Refused: so many borders within `near` of each other that the index would grow out of proportion.
    pub fn new(fences: &[Fence], near_units: u64) -> Result<Grid, Problem> {
        let Some(frame) = choose_frame(fences, near_units) else { return Ok(Grid::default()) };
        let mut builder = Builder::new(frame);
        for (n, fence) in fences.iter().enumerate() {
            builder.add(n as u32, fence);
        }
        let full = |cell: u32| builder.whole[cell as usize] != NOBODY && !builder.touched[cell as usize];
        let (near, blocks) = Near::new(fences, &frame, near_units, full)?;
        Ok(builder.finish(near, &blocks))
    }

    /// The fence of a point, by number. Allocates nothing.
    #[inline]
    pub fn locate(&self, p: Point) -> Option<(usize, How)> {
        let cell = self.cells[self.frame.cell(p)?];
        match cell & !INDEX {
            INSIDE => Some(((cell & INDEX) as usize, How::Inside)),
            MIXED => self.locate_mixed(p, &self.mixed[(cell & INDEX) as usize]),
            _ => None,
        }
    }

    fn locate_mixed(&self, p: Point, cell: &Mixed) -> Option<(usize, How)> {
        for candidate in &self.candidates[cell.first as usize..cell.end as usize] {
            let edges = &self.edges[candidate.first as usize..candidate.end as usize];
            let odd = edges.iter().fold(edges.is_empty(), |odd, edge| odd ^ edge.is_east_of(p));
            if odd {
                return Some((candidate.fence as usize, How::Inside));
            }
        }
        let sub = self.frame.shift - 2;
        let col = (p.lng_e7.wrapping_sub(self.frame.west) as u32 >> sub) & 3;
        let row = (p.lat_e7.wrapping_sub(self.frame.south) as u32 >> sub) & 3;
        self.near.nearest(p, cell.near, row * 4 + col).map(|fence| (fence, How::Near))
    }
}

/// The finest grid within the bounds above; `None` without points.
fn choose_frame(fences: &[Fence], near_units: u64) -> Option<Frame> {
    let all = Bounds::of(fences.iter().flat_map(|f| &f.rings).flatten().copied())?.wider(near_units);
    let edges = fences.iter().flat_map(|f| &f.rings).map(Vec::len).sum::<usize>() as u64;
    let cells_max = (edges * CELLS_PER_EDGE).clamp(CELLS_MIN, CELLS_MAX);
    let touched_max = edges * TOUCHED_PER_EDGE + TOUCHED_MIN + 4 * cells_max;
    let frame = Frame { west: all.west, south: all.south, ..Frame::default() };
    let fits = |frame: &Frame| {
        let boxes = fences.iter().filter_map(|f| Bounds::of(f.rings.iter().flatten().copied()));
        let sides = fences.iter().flat_map(Fence::sides).filter_map(|(a, b)| Bounds::of([a, b].into_iter()));
        let touched = boxes.chain(sides).try_fold(0u64, |sum, b| {
            let sum = sum + frame.covered(&b);
            (sum <= touched_max).then_some(sum)
        });
        touched.is_some()
    };
    let enough = |frame: &Frame| u64::from(frame.cols) * u64::from(frame.rows) <= cells_max && fits(frame);
    (4..=31).map(|shift| frame.with_shift(shift, all.east, all.north)).find(|f| f.rows > 0 && enough(f)).or_else(|| {
        // One cell of 2^32 units has no shift in a u32; 2^31 leaves at most 2 x 1 cells, which hold any map.
        Some(frame.with_shift(31, all.east, all.north))
    })
}

const NOBODY: u32 = u32::MAX;

struct Builder {
    frame: Frame,
    /// For each cell the first fence that has all of it.
    whole: Vec<u32>,
    /// Does an edge of an earlier fence touch it?
    touched: Vec<bool>,
    found: Vec<(u32, Candidate)>,
    edges: Vec<Edge>,
}

/// A part of an edge within one row of cells.
struct Part {
    edge: Edge,
    cols: (u32, u32),
    lats: (i32, i32),
}

impl Builder {
    fn new(frame: Frame) -> Builder {
        let cells = (frame.cols * frame.rows) as usize;
        Builder { frame, whole: vec![NOBODY; cells], touched: vec![false; cells], found: vec![], edges: vec![] }
    }

    fn add(&mut self, fence: u32, shape: &Fence) {
        let mut rows: std::collections::BTreeMap<u32, Vec<Part>> = Default::default();
        for edge in shape.edges().filter(|e| e.lo.lat_e7 < e.hi.lat_e7) {
            for row in self.frame.row(edge.lo.lat_e7.into())..=self.frame.row(i64::from(edge.hi.lat_e7) - 1) {
                rows.entry(row).or_default().push(self.part(edge, row));
            }
        }
        for (row, parts) in rows {
            self.add_row(fence, row, &parts);
        }
    }

    fn part(&self, edge: Edge, row: u32) -> Part {
        let (_, south) = self.frame.corner(row * self.frame.cols);
        let north = south + (1 << self.frame.shift);
        let from = i64::from(edge.lo.lat_e7).max(south);
        let to = i64::from(edge.hi.lat_e7).min(north);
        let rise = i128::from(edge.hi.lat_e7) - i128::from(edge.lo.lat_e7);
        let run = i128::from(edge.hi.lng_e7) - i128::from(edge.lo.lng_e7);
        let lng = |lat: i64| {
            i64::from(edge.lo.lng_e7) + (run * i128::from(lat - i64::from(edge.lo.lat_e7))).div_euclid(rise) as i64
        };
        let (a, b) = (lng(from), lng(to));
        // A unit more on either side makes up for the rounding.
        let cols = (self.frame.col(a.min(b) - 1), self.frame.col(a.max(b) + 2));
        Part { edge, cols, lats: (from as i32, to as i32) }
    }

    /// From east to west: the edges left behind in the east toggle the latitudes they span.
    fn add_row(&mut self, fence: u32, row: u32, parts: &[Part]) {
        let west = parts.iter().map(|p| p.cols.0).min().unwrap_or(0);
        let east = parts.iter().map(|p| p.cols.1).max().unwrap_or(0);
        let mut here: Vec<Vec<&Part>> = vec![Vec::new(); (east - west + 2) as usize];
        let mut behind: Vec<Vec<&Part>> = vec![Vec::new(); (east - west + 2) as usize];
        for part in parts {
            for col in part.cols.0..=part.cols.1 {
                here[(col - west) as usize].push(part);
            }
            if part.cols.0 > west {
                behind[(part.cols.0 - 1 - west) as usize].push(part);
            }
        }
        let mut toggles: Vec<i32> = Vec::new();
        for col in (west..=east).rev() {
            for part in &behind[(col - west) as usize] {
                toggle(&mut toggles, part.lats.0);
                toggle(&mut toggles, part.lats.1);
            }
            self.add_cell(fence, row * self.frame.cols + col, &here[(col - west) as usize], &toggles);
        }
    }

    fn add_cell(&mut self, fence: u32, cell: u32, parts: &[&Part], toggles: &[i32]) {
        if self.whole[cell as usize] != NOBODY || parts.is_empty() && toggles.is_empty() {
            return;
        }
        let (_, south) = self.frame.corner(cell);
        let full = [south, south + (1 << self.frame.shift)];
        if parts.is_empty() && toggles.iter().map(|t| i64::from(*t)).eq(full) {
            self.whole[cell as usize] = fence;
            return;
        }
        let first = self.edges.len() as u32;
        self.edges.extend(parts.iter().map(|p| p.edge));
        let far = |lat_e7| Point { lng_e7: i32::MAX, lat_e7 };
        self.edges.extend(toggles.chunks_exact(2).map(|t| Edge { lo: far(t[0]), hi: far(t[1]) }));
        self.touched[cell as usize] = true;
        self.found.push((cell, Candidate { fence, first, end: self.edges.len() as u32 }));
    }

    fn finish(mut self, near: Near, blocks: &[(u32, u32)]) -> Grid {
        self.found.sort_by_key(|(cell, _)| *cell); // stable: within a cell the order of the fences
        let (mut cells, mut mixed, mut candidates) = (Vec::with_capacity(self.whole.len()), vec![], vec![]);
        let (mut found, mut blocks) = (self.found.iter().peekable(), blocks.iter().peekable());
        for (cell, whole) in self.whole.iter().enumerate() {
            let first = candidates.len() as u32;
            while let Some((_, candidate)) = found.next_if(|(at, _)| *at as usize == cell) {
                candidates.push(*candidate);
            }
            let block = blocks.next_if(|(at, _)| *at as usize == cell).map_or(Near::NO_BLOCK, |(_, block)| *block);
            let parted = candidates.len() as u32 > first;
            cells.push(match (*whole, parted || block != Near::NO_BLOCK) {
                (NOBODY, false) => EMPTY,
                (fence, _) if fence != NOBODY && !parted => INSIDE | fence,
                (fence, _) => {
                    if fence != NOBODY {
                        candidates.push(Candidate { fence, first: 0, end: 0 });
                    }
                    mixed.push(Mixed { first, end: candidates.len() as u32, near: block });
                    MIXED | (mixed.len() as u32 - 1)
                }
            });
        }
        Grid { frame: self.frame, cells, mixed, candidates, edges: self.edges, near }
    }
}

/// Twice is never: what is entered a second time goes.
fn toggle(sorted: &mut Vec<i32>, lat: i32) {
    match sorted.binary_search(&lat) {
        Ok(at) => drop(sorted.remove(at)),
        Err(at) => sorted.insert(at, lat),
    }
}

//! Draws CPU per request by number of connections, with the middle half of the rounds as a bar.

use super::figures::{Spread, What, Who};
use super::report::Report;
use plotters::prelude::*;
use std::path::Path;

const PEERS: [(Who, RGBColor); 3] =
    [(Who::Ours, RGBColor(200, 30, 30)), (Who::Nginx, RGBColor(20, 130, 60)), (Who::Haproxy, RGBColor(40, 80, 190))];

/// Writes the SVG; nothing if the phase was not run.
pub fn cpu(report: &Report, path: &Path) -> Result<(), String> {
    let places = report.figures.places(What::CpuUs);
    let (Some(least), Some(most)) = (places.first(), places.last()) else { return Ok(()) };
    let of = |who| -> Vec<(f64, Spread)> {
        places.iter().filter_map(|at| Some((*at as f64, report.figures.of(What::CpuUs, *at, who)?))).collect()
    };
    let highest = PEERS.iter().flat_map(|(who, _)| of(*who)).map(|(_, s)| s.q75).fold(1.0, f64::max);
    let (x, y) = ((*least as f64 * 0.8)..(*most as f64 * 1.25), 0.0..highest * 1.15);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (760, 460)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("CPU per proxied request, one core, 128-byte answers", ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(x.log_scale(), y)?;
        let labels = |v: &f64| format!("{v:.0}");
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("connections").y_desc("us, user + system; bar: middle half of the rounds");
        mesh.x_label_formatter(&labels).y_label_formatter(&labels).light_line_style(WHITE).draw()?;
        for (who, color) in PEERS {
            let points = of(who);
            if points.is_empty() {
                continue;
            }
            let line = LineSeries::new(points.iter().map(|(n, s)| (*n, s.median)), color.stroke_width(2));
            let series = chart.draw_series(line)?.label(who.name());
            series.legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
            let bar = |(n, s): &(f64, Spread)| ErrorBar::new_vertical(*n, s.q25, s.median, s.q75, color.filled(), 8);
            chart.draw_series(points.iter().map(bar))?;
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperRight).border_style(BLACK).background_style(WHITE).draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("--plot {}: {e}", path.display()))
}

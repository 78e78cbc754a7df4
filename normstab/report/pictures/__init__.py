"""The pictures of a report, as SVG text: curves, maps of sites, exponents, and the plots of claims."""

"""HTML reports: one file that contains its style and drawings and loads nothing else.

`page` has the frame with its cards and tables, and `svg` draws the charts.
"""

from merge.report.page import figure, page, text_table, tile
from merge.report.svg import bar_chart, cell_table, line_chart

__all__ = ["bar_chart", "cell_table", "figure", "line_chart", "page", "text_table", "tile"]

"""A page about bundles: what was built, what it keeps, how fast it is, and where all of that comes from."""

from exporter.report.collect import Findings, collect
from exporter.report.html import html_page
from exporter.report.markdown import markdown_page
from exporter.report.page import Page

__all__ = ["Findings", "Page", "collect", "html_page", "markdown_page"]

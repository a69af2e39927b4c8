"""The report of a study: one HTML file that needs nothing else, made of what lies in the study's folder."""

from hpcmass.sweep.report.gather import gather
from hpcmass.sweep.report.page import render, write_report

__all__ = ["gather", "render", "write_report"]

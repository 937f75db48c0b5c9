"""Matrices to work on: generators with known properties, data that ships with rnla, and files the user already has."""

from rnla.datasets._completion import completion_coherence, completion_problem, space_time_samples
from rnla.datasets._files import load_matrix
from rnla.datasets._generators import document_term, power_law_graph
from rnla.datasets._graph_operator import graph_operator
from rnla.datasets._robust_pca import robust_pca_problem
from rnla.datasets._shipped import load_photograph, load_road_network
from rnla.datasets._video import moving_rectangles

__all__ = [
    "completion_coherence",
    "completion_problem",
    "document_term",
    "graph_operator",
    "load_matrix",
    "load_photograph",
    "load_road_network",
    "moving_rectangles",
    "power_law_graph",
    "robust_pca_problem",
    "space_time_samples",
]

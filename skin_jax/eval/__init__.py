"""From probabilities to metrics, tables, figures and reports."""

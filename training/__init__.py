"""From images to a run folder: recipes, networks, data sets, the training loop, the report.

The stage hands on files alone: ``run_folder.write_run`` writes them, ``run_folder.load_run`` reads them.
"""

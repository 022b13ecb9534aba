"""What the speed costs in fidelity: pictures of faster pipelines against those of the plain one.

``python -m benchmarks.fidelity`` is `run`; `contestants` says who takes part on which sampler, the
folder `rivals` holds other methods, rebuilt from their papers, `work` counts what a generation
costs and what a budget leaves, `subjects` says what a model is asked to draw and what reads its
pictures, `frechet` measures distances between sets of pictures, `curves` reads figures off the
results and `plot` draws them. `per_picture` measures what adapts to each picture, `evaluation_set`
makes large sets for measures of your own. The models and what reads their pictures back come from
`train`.
"""

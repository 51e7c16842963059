"""Published weights -> parameters, without executing what is in the file.

One module for each kind of file (`*_file`), behind `files.read_tensors`: path -> lazy arrays by published names (`lazy`),
read when they are saved or placed. One adapter for each model, a module of its name: (arrays, the model's config) -> what inference
needs of the state, and in `CONFIG` what a workload's config must have for them.
"""

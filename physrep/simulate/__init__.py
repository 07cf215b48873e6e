"""Small, verified solvers of systems of The Well, and the engine that writes data sets with them."""

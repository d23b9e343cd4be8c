std = "lua54"
self = false
max_line_length = 120
exclude_files = { "build*", "bench/build" }
files["bench/wrk.lua"] = { std = "luajit", globals = { "setup", "init", "done", "response", "bad" } }
files["spec"] = { std = "+busted" }
files[".busted"] = { std = "min" }

files["doc/meta"] = { ignore = { "2..", "431" } } -- declarations: what they name is for editors

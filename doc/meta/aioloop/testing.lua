---@meta aioloop.testing
-- SPDX-License-Identifier: MIT
-- What lua-language-server needs to know of the test helpers; never loaded by a program.
error("not a module: for editors only")

---@class aioloop.testing.options: aioloop.options
---@field seconds? number the time limit, of real time; 5

---@class aioloop.testing
local testing = {}
---@param fn fun(ctx: aioloop.context)
---@param options? number|aioloop.testing.options
---@return fun() test
function testing.async(fn, options) end
---@param fn fun(ctx: aioloop.context)
---@param options? number|aioloop.testing.options
---@return fun() test
function testing.virtual(fn, options) end
---@param seed integer
---@param fn fun(ctx: aioloop.context, seed: integer)
---@param options? number|aioloop.testing.options
---@return fun() test
function testing.shuffled(seed, fn, options) end
---@param n integer
---@param fn fun(ctx: aioloop.context, seed: integer)
---@param options? number|aioloop.testing.options
---@return fun() test
function testing.each_seed(n, fn, options) end
---@param fn function
---@param ... any
---@return any ...
function testing.leaks(fn, ...) end
---@param name string
---@param fn fun(ctx: aioloop.context)
---@param options? number|aioloop.testing.options
function testing.it_async(name, fn, options) end

return testing

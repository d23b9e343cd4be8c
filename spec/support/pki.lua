-- SPDX-License-Identifier: MIT
--- Keys and certificates, which openssl makes once for each run: ca, server and client of that authority; other, an
-- authority that nobody knows.
--
-- Way    pki.path "server.pem" -> the folder, made when it is first asked for and removed at the end of the run

local pki = {}

-- EC keys, for they are made in no time. Server: localhost, *.example.org, 127.0.0.1; old: a common name alone.
local MAKE <const> = [[
cd %s && exec >log 2>&1 && set -e
new() { openssl req "$@" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes; }
sign() { openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out $1.pem $2 $3; }
new -x509 -days 2 -subj "/CN=spec authority" -keyout ca.key -out ca.pem
new -x509 -days 2 -subj "/CN=other authority" -keyout other.key -out other.pem
echo "subjectAltName=DNS:localhost,DNS:*.example.org,IP:127.0.0.1" >names
for name in server client old; do new -subj "/CN=$name.test" -keyout $name.key -out $name.csr; done
sign server -extfile names
sign client
sign old
]]

local folder

local function make()
  local pipe <close> = io.popen "mktemp -d"
  local path = assert(pipe:read())
  folder = setmetatable({ path = path }, { __gc = function() os.execute("rm -rf " .. path) end })
  assert(os.execute(MAKE:format(path)), "openssl has made no certificates")
end

--- Where a file is.
function pki.path(name)
  if not folder then make() end
  return folder.path .. "/" .. name
end

--- Parameters of a server, with what a spec adds.
function pki.server(more)
  local params = { mode = "server", certificate = pki.path "server.pem", key = pki.path "server.key" }
  for name, value in pairs(more or {}) do params[name] = value end
  return params
end

--- Parameters of a client that knows the authority.
function pki.client(more)
  local params = { mode = "client", cafile = pki.path "ca.pem", verify = "peer", sni = "localhost" }
  for name, value in pairs(more or {}) do params[name] = value end
  return params
end

return pki

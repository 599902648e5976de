# Common code of the kinds `kubernetes` and `cluster`; sourced by them, never run.
# shellcheck shell=bash disable=SC2154,SC2034  # ./start sets these, and the kinds use them
need etcd openssl
pki=$dir/pki; mkdir -p "$pki"

# program NAME: prints the path of one of Kubernetes' own programs.
program() { [ -x "$cache/kubernetes/$1" ] || die "$1 is missing: run testbed/install"; echo "$cache/kubernetes/$1"; }

certificates() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=testbed -keyout "$pki/ca.key" -out "$pki/ca.crt" \
    -addext keyUsage=critical,keyCertSign,cRLSign
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=kube-apiserver -keyout "$pki/api.key" -out "$pki/api.csr"
  openssl x509 -req -in "$pki/api.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 30 -out "$pki/api.crt" -extfile <(
    echo 'basicConstraints=critical,CA:FALSE'
    echo 'subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1'
    echo 'extendedKeyUsage=serverAuth')
  openssl genrsa -out "$pki/account.key" 2048
}
if [ ! -s "$pki/account.key" ]; then
  certificates >"$dir/openssl.log" 2>&1 || { cat "$dir/openssl.log" >&2; die "no certificates"; }
  token=$(openssl rand -hex 16)
  printf '%s,admin,admin,system:masters\n' "$token" >"$pki/tokens.csv"
  printf '%s,nobody,nobody\n' "$(openssl rand -hex 16)" >>"$pki/tokens.csv"
fi
token=$(sed -n 's/,admin,.*//p' "$pki/tokens.csv")
nobody=$(sed -n 's/,nobody,.*//p' "$pki/tokens.csv")

apiserver_options=(--cert-dir="$pki" --tls-cert-file="$pki/api.crt" --tls-private-key-file="$pki/api.key" --token-auth-file="$pki/tokens.csv"
  --authorization-mode=RBAC --service-account-key-file="$pki/account.key" --service-account-signing-key-file="$pki/account.key"
  --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.96.0.0/16 --allow-privileged)

# The address and credentials of the API server's administrator, and other values for the caller.
reached_at() { # SERVER
  cat >"$dir/kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: testbed, cluster: {server: "$1", certificate-authority: $pki/ca.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: testbed, context: {cluster: testbed, user: admin}}]
current-context: testbed
CONFIG
  value KUBECONFIG "$dir/kubeconfig"
  value SERVER "$1"
  value CA "$pki/ca.crt"
  value TOKEN "$token"
  value NOBODY_TOKEN "$nobody"
  value TOKENS "$pki/tokens.csv"
}

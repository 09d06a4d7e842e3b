#!/usr/bin/env bash
# Builds the Kotlin package for the JVM with what the registries have: the compiler from npm, JNA from Debian.
#
#   mobile/kotlin/build.sh          lethe.jar below target/kotlin, with the native library of this machine (Linux)
#   mobile/kotlin/build.sh test     runs the tests as well, against a real coordinator
set -euo pipefail
cd "$(dirname "$0")/../.."
release=${CARGO_TARGET_DIR:-target}/release
out=target/kotlin
version=2.4.20
compiler=$out/compiler-$version/node_modules/kotlin-compiler
if ! [ -e "$compiler/bin/kotlinc" ]; then
    npm install --silent --no-audit --no-fund --prefix "$out/compiler-$version" "kotlin-compiler@$version"
fi
chmod +x "$compiler"/bin/*
jna=/usr/share/java/jna.jar
[ -e "$jna" ] || { echo "JNA is missing: apt-get install libjna-java" >&2; exit 1; }
[ -e "$release/liblethe_ffi.so" ] || { echo "build first: cargo build --release" >&2; exit 1; }
path=$jna:$compiler/lib/kotlinx-coroutines-core-jvm.jar
"$compiler/bin/kotlinc" -nowarn -jvm-target 17 -cp "$path" mobile/kotlin/src/main -d "$out/lethe.jar"
# Where JNA looks for a library inside of a jar.
place=$out/natives/linux-$(uname -m | sed 's/x86_64/x86-64/')
rm -rf "$out/natives"
mkdir -p "$place"
cp "$release/liblethe_ffi.so" "$place/"
strip --strip-unneeded "$place/liblethe_ffi.so"
jar uf "$out/lethe.jar" -C "$out/natives" .
# What a program needs to run, for who starts one by hand.
echo "$PWD/$out/lethe.jar:$path:$compiler/lib/kotlin-stdlib.jar" | sed "s|:target|:$PWD/target|g" >"$out/classpath"
[ "${1:-}" = test ] || exit 0
"$compiler/bin/kotlinc" -nowarn -jvm-target 17 -cp "$path:$out/lethe.jar" mobile/kotlin/src/test -d "$out/tests.jar"
SDK_WORLD=$release/sdk-world java -cp "$(cat "$out/classpath"):$out/tests.jar" app.lethe.TestsKt

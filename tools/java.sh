#!/usr/bin/env bash
# Where there is no Java, unpack the distribution's headless runtime into a folder: no root, nothing installed.
# Usage: tools/java.sh FOLDER
set -euo pipefail
folder=$1

if [ -n "${JAVA_HOME:-}" ] || command -v java >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    exit 0 # batch-assets says what to install
fi

packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
runtime=""
for version in 21 17; do
    if (cd "$packages" && apt-get download "openjdk-$version-jre-headless" >/dev/null 2>&1); then
        runtime=openjdk-$version-jre-headless
        break
    fi
done
if [ -z "$runtime" ]; then
    echo "Java can't be downloaded: run 'apt-get update' once, or install openjdk-17-jre-headless" >&2
    exit 0
fi
echo "unpacking $runtime into $folder"
# Libraries that the runtime links to and that a small machine may lack.
for library in libpcsclite1 liblcms2-2 libjpeg62-turbo libjpeg-turbo8 libfontconfig1 libfreetype6 libharfbuzz0b \
    libgraphite2-3 libpng16-16 libpng16-16t64 libglib2.0-0 libglib2.0-0t64 zlib1g; do
    (cd "$packages" && apt-get download "$library" >/dev/null 2>&1) || true
done
rm -rf "$folder.part"
for package in "$packages"/*.deb; do
    dpkg-deb --extract "$package" "$folder.part"
done
# The runtime's configuration lies in /etc, where its links point; here that is inside the folder.
rm -rf "$folder"
mv "$folder.part" "$folder"
root=$(cd "$folder" && pwd)
find "$folder" -type l -lname '/etc/*' | while read -r link; do
    ln -sfn "$root$(readlink "$link")" "$link"
done

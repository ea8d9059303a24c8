#!/bin/sh
# An editor without a person: sed with the script in $EDIT.
sed -i "$EDIT" "$1"

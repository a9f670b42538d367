// Logs in with pgx, with TLS or through a forwarder (without TLS). The connection is that of
// libpq's variables. Run by scripts/drivers.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v4"
)

func main() {
	background := context.Background()
	connection, err := pgx.Connect(background, "")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer connection.Close(background)
	var user string
	err = connection.QueryRow(background, "select current_user::text").Scan(&user)
	fmt.Println("pgx 4:", user)
	if err != nil || user != os.Getenv("PGUSER") {
		fmt.Fprintln(os.Stderr, "pgx: expected", os.Getenv("PGUSER"), err)
		os.Exit(1)
	}
}

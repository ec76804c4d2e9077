-- What every connection begins with.
check()
return {'ok'}
